//! `ringctl user` on a file.

use ringbase::auth::SaslServer;
use ringbase::protocol::Status;

use super::{ringctl, ringctl_with_input};

#[test]
fn users_are_added_listed_and_removed_and_their_passwords_are_not_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users.json");
    let file = path.to_str().unwrap();
    let words = ["user", "add", "--users", file, "anna", "--role", "admin", "--password-stdin"];
    let added = ringctl_with_input(&words, "very secret\nsecond line\n");
    assert_eq!(added.code, 0, "{}", added.err);
    let added = ringctl(&["user", "add", "--users", file, "otto", "--password", "x", "--json"]);
    assert_eq!(added.out, "{\"result\":\"added\",\"user\":\"otto\"}\n");

    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("anna") && !text.contains("very secret"));
    let users = ringbase::auth::Users::load(&path).unwrap();
    let login = |password: &str| {
        let challenge = format!("\0anna\0{password}");
        SaslServer::new().start(b"PLAIN", challenge.as_bytes(), &users, [7; 16]).status()
    };
    assert_eq!(login("very secret"), Status::SUCCESS, "only the first line is the password");
    assert_eq!(login("very secret\nsecond line"), Status::AUTH_ERROR);

    let list = ringctl(&["user", "list", "--users", file]);
    assert_eq!(list.out, "NAME        ROLE\nanna       admin\notto  read-write\n");
    let list = ringctl(&["user", "list", "--users", file, "--json"]);
    assert_eq!(
        list.out,
        r#"[{"name":"anna","role":"admin"},{"name":"otto","role":"read-write"}]"#.to_owned() + "\n"
    );

    let again = ringctl(&["user", "add", "--users", file, "anna", "--password", "y"]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("\"anna\" exists"), "{}", again.err);
    assert_eq!(ringctl(&["user", "remove", "--users", file, "anna"]).code, 0);
    let missing = ringctl(&["user", "remove", "--users", file, "anna"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("there is no user \"anna\""), "{}", missing.err);
    let list = ringctl(&["user", "list", "--users", file]);
    assert!(!list.out.contains("anna"));
}

#[test]
fn a_damaged_or_missing_users_file_is_named_and_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users.json");
    let file = path.to_str().unwrap();
    let missing = ringctl(&["user", "list", "--users", file]);
    assert!(missing.code == 1 && missing.err.contains(file), "{}", missing.err);
    std::fs::write(&path, "{ not json").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let damaged = ringctl(&["user", "add", "--users", file, "anna", "--password", "x"]);
    assert!(damaged.code == 1 && damaged.err.contains(file), "{}", damaged.err);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{ not json");
}
