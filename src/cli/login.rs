//! `acetate login` and `acetate logout`

use std::io::{self, BufRead, IsTerminal, Read, Write};

use clap::Args;
use rustix::termios::{self, LocalModes, OptionalActions};

use super::registry::ReachArgs;
use super::{CliError, output};
use crate::image::ImageError;
use crate::image::registry::registry_host;

/// What is meant when no registry is named.
const DEFAULT: &str = "docker.io";

/// Keeps the credentials for a registry, if it takes them
#[derive(Args, Debug)]
pub(super) struct LoginArgs {
    /// Host and port of the registry
    #[arg(value_name = "HOST", default_value = DEFAULT)]
    host: String,
    /// The user; asked for when it is missing
    #[arg(short, long)]
    username: Option<String>,
    /// The password; others see it in the list of processes, so better use --password-stdin
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

impl LoginArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let host = registry_host(&self.host)?;
        let user = match self.username {
            Some(user) => user,
            None => ask("Username: ", false)?,
        };
        let password = match self.password {
            Some(password) => {
                writeln!(
                    io::stderr(),
                    "acetate: a password on the command line can be seen by others: better use --password-stdin"
                )?;
                password
            }
            None if self.password_stdin => {
                let mut text = String::new();
                io::stdin().read_to_string(&mut text)?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            None => ask("Password: ", true)?,
        };
        if user.is_empty() || password.is_empty() {
            return Err(CliError::Usage(
                "neither the user nor the password may be empty".into(),
            ));
        }
        // The file keeps both in one word, with a colon between them.
        if user.contains(':') {
            return Err(CliError::Usage("a user has no colon in its name".into()));
        }
        let place = self
            .reach
            .registry()?
            .login(&host, &user, &password)
            .map_err(ImageError::from)?;
        Ok(output::lines([
            format!("The credentials are kept in {place}."),
            "Login Succeeded".to_owned(),
        ])?)
    }
}

/// Asks at the terminal.
fn ask(prompt: &str, secret: bool) -> Result<String, CliError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(CliError::Usage(
            "standard input is no terminal to ask at: use --username and --password-stdin".into(),
        ));
    }
    let before = termios::tcgetattr(&stdin).map_err(io::Error::from)?;
    if secret {
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(&stdin, OptionalActions::Flush, &quiet).map_err(io::Error::from)?;
    }
    // Only now: whoever types at once is not shown either.
    let mut stderr = io::stderr();
    let asked = write!(stderr, "{prompt}").and_then(|()| stderr.flush());
    let mut line = String::new();
    let read = asked.and_then(|()| stdin.lock().read_line(&mut line));
    if secret {
        termios::tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(io::Error::from)?;
        writeln!(stderr)?;
    }
    read?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Forgets the credentials for a registry
#[derive(Args, Debug)]
pub(super) struct LogoutArgs {
    /// Host and port of the registry
    #[arg(value_name = "HOST", default_value = DEFAULT)]
    host: String,
    #[command(flatten)]
    reach: ReachArgs,
}

impl LogoutArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let host = registry_host(&self.host)?;
        let known = self
            .reach
            .registry()?
            .logout(&host)
            .map_err(ImageError::from)?;
        Ok(output::line(&if known {
            format!("Removing login credentials for {host}")
        } else {
            format!("Not logged in to {host}")
        })?)
    }
}
