//! `ringctl user`: the users file of a node. Needs no node.
//!
//! Does not know: the file's format (`ringbase::auth`).

use std::path::Path;

use ringbase::auth::user::ITERATIONS_DEFAULT;
use ringbase::auth::users::os_random;
use ringbase::auth::{Role, User, Users, UsersError};
use serde_json::json;

use super::password;
use crate::args::{GlobalArgs, UserAction, UserArgs};
use crate::failure::Failure;
use crate::output::{print, print_json, write_table};

pub(crate) fn run(global: &GlobalArgs, args: &UserArgs) -> Result<(), Failure> {
    match &args.action {
        UserAction::Add { users, name, role } => add(global, users, name, *role),
        UserAction::List { users } => list(global, users),
        UserAction::Remove { users, name } => remove(global, users, name),
    }
}

fn cannot(what: &str) -> impl FnOnce(UsersError) -> Failure {
    let what = what.to_owned();
    move |error| Failure::other(what, error)
}

fn add(global: &GlobalArgs, path: &Path, name: &str, role: Role) -> Result<(), Failure> {
    let password = password(global)?
        .ok_or_else(|| Failure::misuse("the user needs a password: --password-stdin or --password"))?;
    let mut users = if path.exists() {
        Users::load(path).map_err(cannot("no user was added"))?
    } else {
        Users::empty(&mut os_random)
    };
    let user = User::new(role, password.as_bytes(), ITERATIONS_DEFAULT, &mut os_random);
    let user = user.map_err(|error| Failure::other("no user was added", error))?;
    users.add(name, user).map_err(cannot("no user was added"))?;
    users.save(path).map_err(cannot("no user was added"))?;
    tell(global, "added", name)
}

fn remove(global: &GlobalArgs, path: &Path, name: &str) -> Result<(), Failure> {
    let mut users = Users::load(path).map_err(cannot("no user was removed"))?;
    users.remove(name).map_err(cannot("no user was removed"))?;
    users.save(path).map_err(cannot("no user was removed"))?;
    tell(global, "removed", name)
}

fn tell(global: &GlobalArgs, what: &str, name: &str) -> Result<(), Failure> {
    if global.json {
        return print_json(&json!({ "result": what, "user": name }));
    }
    print(|out| writeln!(out, "{what} user {name}; a running node reads the file when it starts again"))
}

fn list(global: &GlobalArgs, path: &Path) -> Result<(), Failure> {
    let users = Users::load(path).map_err(cannot("cannot list the users"))?;
    if global.json {
        let list: Vec<_> =
            users.iter().map(|(name, user)| json!({ "name": name, "role": user.role.name() })).collect();
        return print_json(&list.into());
    }
    let mut rows = vec![vec!["NAME".to_owned(), "ROLE".to_owned()]];
    rows.extend(users.iter().map(|(name, user)| vec![name.to_owned(), user.role.name().to_owned()]));
    print(|out| write_table(out, &rows))
}
