//! How a bench ends.

use std::process::ExitCode;

use anyhow::Result;
use common::session::complain;

/// Success if what it measured is as it must be; says why it could not measure.
pub fn exit_code(verdict: Result<bool>) -> ExitCode {
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            complain("bench", &format!("{err:#}"));
            ExitCode::FAILURE
        }
    }
}
