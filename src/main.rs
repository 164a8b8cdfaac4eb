//! The `acetate` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    acetate::cli::run(std::env::args_os())
}
