//! `acetate umount`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::mount;

/// Unmounts, waits for the daemon to end, and takes away the mount of a dead one
#[derive(Args, Debug)]
pub(super) struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Detach the mount now, even while programs use it, and do not wait
    #[arg(long, short)]
    lazy: bool,
}

impl UmountArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        mount::unmount(&self.dir, self.lazy)?;
        mount::sweep(&mount::store_root(root));
        Ok(())
    }
}

/// As a helper of `umount(8)`: `DIR` and the flags `-nlfvr`, `-N` and `-t` with a value.
pub(super) fn as_helper(words: &[OsString]) -> Result<(), CliError> {
    let (mut dir, mut lazy) = (None, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"-t" | b"-N" => {
                words.next();
            }
            [b'-', flags @ ..] => lazy |= flags.contains(&b'l'),
            _ => dir = Some(word),
        }
    }
    match dir {
        Some(dir) => Ok(mount::unmount(dir.as_ref(), lazy)?),
        None => Err(CliError::Usage("name a directory to unmount".into())),
    }
}
