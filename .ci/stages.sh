# The stages of .ci/run, one function each; sourced, not run. They see $target, $sdk_venv and $test_log.

# Installs what is missing and leaves the rest alone.
stage_install() {
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
  command -v memccapable >/dev/null || debian_package libmemcached-tools
  command -v python3 >/dev/null || debian_package python3
  if ! "$sdk_venv/bin/python" -c 'import couchbase' 2>/dev/null; then
    python3 -c 'import ensurepip' 2>/dev/null || debian_package python3-venv
    python3 -m venv --clear "$sdk_venv"
    "$sdk_venv/bin/pip" install --quiet --disable-pip-version-check -r node/tests/sdk/requirements.txt
  fi
  command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
  "$sdk_venv/bin/pip" list --disable-pip-version-check 2>/dev/null | grep -i '^couchbase '
  cargo --version
  cargo fuzz --version
}

# Installs one Debian package, or says what has to be installed by hand.
debian_package() {
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "missing: $1. Install it (Debian: apt-get install $1) or run this as root." >&2
    return 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1" >/dev/null
}

stage_fmt() {
  cargo fmt --all --check
}

stage_clippy() {
  cargo clippy --locked --workspace --all-targets -- -D warnings
}

stage_doc() {
  RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
}

# README's second command, as it stands there, with every client required.
stage_test() {
  local command
  command=$(readme_command 2)
  [ -n "$command" ] || { echo "README.md has no second block marked sh" >&2; return 1; }
  echo "$command"
  REQUIRE_CLIENTS=1 RINGBASE_SDK_PYTHON="$sdk_venv/bin/python" RUST_BACKTRACE=1 \
    bash -euc "$command" 2>&1 | tee "$test_log"
}

readme_command() {
  awk -v wanted="$1" '/^```sh/ {n++; inside = 1; next} /^```/ {inside = 0} inside && n == wanted' README.md
}

# The sum over the result lines of all test binaries, alone on a line.
summary() {
  awk '/^test result: / {
    for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i - 1); if ($i ~ /^failed/) failed += $(i - 1) }
  } END { printf "%d passed, %d failed\n", passed, failed }' "$1"
}

# The lock-free parts under loom (every interleaving of small tests) and shuttle (random schedules of larger ones), in short form;
# perf/README.md has the long one. What they count is printed, their results go into the sum.
stage_model() {
  local checker
  for checker in loom shuttle; do
    RUSTFLAGS="${RUSTFLAGS:-} --cfg $checker" CARGO_TARGET_DIR="$target/$checker" RINGBASE_SCHEDULES="${RINGBASE_SCHEDULES:-100000}" \
      cargo test --locked -p ringbase-storage --release --lib "${checker}_" -- --nocapture 2>&1 | tee -a "$test_log" |
      grep -E '^(test result: |error|thread .* panicked)|[0-9] (interleavings|schedules)( in|$)| is caught by ' || return 1
  done
}

# `cargo fuzz build` or `run` of a package, with what follows. Building takes most of the time here: all targets together, once for what both packages
# need, in many pieces, lightly optimized.
fuzz_package() {
  local command=$1 package=$2
  shift 2
  RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 cargo fuzz "$command" --fuzz-dir "$package" \
    --target-dir "$target/fuzz" --codegen-units 16 "$@"
}

# Every target of every fuzz package, from a copy of its corpus: a run must not change the tree. The stable compiler does.
stage_fuzz() {
  local package name corpus log
  for package in */fuzz/Cargo.toml; do
    package=${package%/Cargo.toml}
    cargo metadata --locked --format-version 1 --manifest-path "$package/Cargo.toml" >/dev/null ||
      { echo "stale $package/Cargo.lock: run cargo check --manifest-path $package/Cargo.toml and commit it" >&2; return 1; }
    fuzz_package build "$package" >"$target/fuzz-build.log" 2>&1 || { tail -n 60 "$target/fuzz-build.log"; return 1; }
    for name in $(cargo fuzz list --fuzz-dir "$package"); do
      corpus=$(mktemp -d "$target/corpus-XXXXXX")
      log="$corpus.log"
      [ ! -d "$package/corpus/$name" ] || cp "$package/corpus/$name"/* "$corpus"
      if ! fuzz_package run "$package" "$name" "$corpus" -- \
        -max_total_time="${FUZZ_SECONDS:-3}" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "failed: $package $name; the input is named above" >&2
        return 1
      fi
      echo "$package $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs"
      rm -r "$corpus" "$log"
    done
  done
}
