// SPDX-License-Identifier: Apache-2.0
//! How a command ends when it does not succeed.

use pilus_api::ClientError;
use pilus_api::documents::DocumentError;
use std::fmt;
use std::io;

/// Why a command did not succeed; decides the exit status.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for something that makes no sense.
    Usage(String),
    /// The agent could not be asked, or refused.
    Client(ClientError),
    /// The output could not be written.
    Io(io::Error),
    /// Anything else that went wrong.
    Other(anyhow::Error),
}

impl Failure {
    /// Something went wrong, in one line.
    pub fn new(line: impl Into<String>) -> Failure {
        Failure::Other(anyhow::Error::msg(line.into()))
    }

    /// Exit status of the program.
    pub fn status(&self) -> u8 {
        if let Failure::Usage(_) = self { 2 } else { 1 }
    }

    /// Whether the reader of our output went away, as `head` does; nothing to complain about.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Failure::Io(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(line) => f.write_str(line),
            Failure::Client(error) => error.fmt(f),
            Failure::Io(error) => write!(f, "cannot write the output: {error}"),
            Failure::Other(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}

impl From<DocumentError> for Failure {
    fn from(error: DocumentError) -> Failure {
        match error {
            DocumentError::InputTwice => Failure::Usage(error.to_string()),
            _ => Failure::new(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Other(error)
    }
}
