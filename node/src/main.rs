//! `ringbase`: the node's command line. Only glue: flags in, exit code out.
//!
//! Does not know: anything that runs.

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringbase::config::ServeArgs;
use ringbase::{check, demo, server, telemetry};

/// A key-value storage node that speaks the Couchbase protocol.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node on a data directory until SIGTERM or Ctrl-C.
    ///
    /// Example: ringbase serve --data /var/lib/ringbase
    Serve {
        #[command(flatten)]
        args: Box<ServeArgs>,
        /// Print the ready line as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what this machine allows, and what to change so that a node runs and runs well.
    ///
    /// Exit code 1 if a node would not run. Example: ringbase check --data /var/lib/ringbase
    Check {
        #[command(flatten)]
        args: check::CheckArgs,
    },
    /// Start a node, load real documents, scan them, kill it, start it again and compare.
    ///
    /// Example: ringbase demo --from dir:/usr/share/doc
    Demo {
        #[command(flatten)]
        args: demo::DemoArgs,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve { args, json } => serve(*args, json),
        Command::Check { args } => {
            let report = check::check(&args);
            if args.json {
                println!("{}", report.to_json())
            } else {
                print!("{report}")
            }
            ExitCode::from(report.exit_code())
        }
        Command::Demo { args } => match demo::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    eprintln!("ringbase: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
    ExitCode::from(1)
}

fn serve(args: ServeArgs, json: bool) -> ExitCode {
    let config = match args.validate() {
        Ok(config) => config,
        Err(error) => {
            fail(&error);
            return ExitCode::from(2);
        }
    };
    if let Err(error) = telemetry::start_log(&config.log) {
        fail(&error);
        return ExitCode::from(2);
    }
    let ready = |line: &server::ReadyLine| {
        if json {
            println!("{}", serde_json::to_string(line).unwrap_or_default());
        } else {
            println!("{line}");
        }
        if line.open {
            eprintln!(
                "no users file: loopback only, no authentication needed; clients that insist may use Administrator / password"
            );
        }
    };
    match server::serve(&config, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}
