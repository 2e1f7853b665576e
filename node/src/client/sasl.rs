//! Authentication of a connection: the exchange of `auth::client` with the strongest mechanism that the node
//! offers, PLAIN only if there is nothing better.
//!
//! Does not know: what the messages contain.

use super::connection::{Connection, Credentials, unexpected};
use super::error::ClientError;
use crate::auth::{Mechanism, SaslClient, SaslClientError};
use crate::protocol::{Opcode, Request, Status};

/// Proves to the node who this is.
///
/// # Errors
/// `Authentication` if it does not believe it, `ServerNotTrusted` if the node's own proof is wrong.
pub(super) fn authenticate(
    connection: &mut Connection,
    credentials: &Credentials,
) -> Result<(), ClientError> {
    let user = || credentials.user.clone();
    let list = Request::new(Opcode::SASL_LIST_MECHS);
    let offered = connection.call(list, |frame| String::from_utf8_lossy(frame.value).into_owned())?;
    let Some(mechanism) = Mechanism::strongest_of(&offered) else {
        return Err(ClientError::NoMechanism { offered });
    };
    let untrusted = |error: SaslClientError| ClientError::ServerNotTrusted { user: user(), source: error };

    let mut exchange = SaslClient::new(mechanism, &credentials.user, &credentials.password, rand::random());
    let (mut opcode, mut message) = (Opcode::SASL_AUTH, exchange.start());
    loop {
        let request = Request::new(opcode).key(mechanism.name().as_bytes()).value(&message);
        let answer = connection.call(request, |frame| (frame.status(), frame.value.to_vec()));
        match answer {
            Ok((Status::SUCCESS, reply)) => return exchange.finish(&reply).map_err(untrusted),
            Ok((Status::AUTH_CONTINUE, reply)) if opcode == Opcode::SASL_AUTH => {
                message = exchange.step(&reply).map_err(untrusted)?;
                opcode = Opcode::SASL_STEP;
            }
            Ok((status, _)) => return Err(unexpected(opcode, &status.to_string())),
            Err(ClientError::Refused { status: Status::AUTH_ERROR, .. }) => {
                return Err(ClientError::Authentication { user: user() });
            }
            Err(error) => return Err(error),
        }
    }
}
