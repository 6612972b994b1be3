//! The servers of one run of the tests, and what the tests are told of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::environment as env;
use crate::folder::RunFolder;
use crate::rabbit::Rabbit;
use crate::seaweed::{self, Seaweed};
use crate::{process, witness};

/// What runs; ended when dropped.
#[derive(Debug)]
pub struct Servers {
    /// Absent where [`env::AMQP`] names another broker.
    rabbit: Option<Rabbit>,
    /// Absent where [`env::S3_ENDPOINT`] names another server.
    seaweed: Option<Seaweed>,
}

impl Servers {
    /// Starts in `folder` what the environment does not already name.
    ///
    /// # Errors
    /// One does not start.
    pub fn start(folder: &RunFolder) -> Result<Self> {
        let rabbit = match env::get(env::AMQP) {
            Some(_) => None,
            None => Some(Rabbit::start(&folder.path().join("rabbit"))?),
        };
        let seaweed = match env::get(env::S3_ENDPOINT) {
            Some(_) => None,
            None => Some(Seaweed::start(&folder.path().join("seaweed"))?),
        };
        Ok(Servers { rabbit, seaweed })
    }

    /// Returns the variables to set for the tests.
    pub fn variables(&self) -> BTreeMap<&'static str, OsString> {
        let mut variables = BTreeMap::new();
        if let Some(rabbit) = &self.rabbit {
            variables.insert(env::AMQP, rabbit.amqp_url().into());
            variables.insert(env::AMQPS, rabbit.amqps_url().into());
            variables.insert(env::AMQPS_CA, rabbit.authority().into());
            variables.insert(env::MANAGEMENT, rabbit.management_url().into());
        }
        if let Some(seaweed) = &self.seaweed {
            variables.insert(env::S3_ENDPOINT, seaweed.endpoint().into());
            variables.insert(env::S3_BUCKET, seaweed::BUCKET.into());
            variables.insert("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY.into());
            variables.insert("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_KEY.into());
            variables.insert("AWS_REGION", seaweed::REGION.into());
            // Whoever runs the tests may have an AWS configuration of their own.
            for file in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
                variables.insert(file, "/dev/null".into());
            }
            variables.insert("AWS_EC2_METADATA_DISABLED", "true".into());
        }
        variables.insert(env::PYTHON, witness::python().into());
        // Whoever names another one, a release build say, has it tested instead.
        if env::get(env::BIN).is_none()
            && let Some(binary) = built_beside_us()
        {
            variables.insert(env::BIN, binary.into());
        }
        variables
    }

    /// Runs a command that is told of the servers, and returns its exit code.
    ///
    /// # Errors
    /// The command is not there.
    pub fn run(&self, command: &[OsString]) -> Result<u8> {
        let (program, args) = command.split_first().context("no command to run was given")?;
        let mut child = std::process::Command::new(program)
            .args(args)
            .env_remove("AWS_PROFILE")
            .env_remove("AWS_SESSION_TOKEN")
            .env_remove("AWS_ENDPOINT_URL")
            .envs(self.variables())
            .spawn()
            .with_context(|| format!("failed to start `{}`", program.display()))?;
        let _lifeline = process::Lifeline::to_process(child.id())?;
        let status = child.wait().context("failed to wait for the command")?;
        // 128 and more is how shells tell of a signal; here one word for all of them will do.
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(128))
    }
}

/// Returns the `dacapo` of the same build, if it was built.
fn built_beside_us() -> Option<PathBuf> {
    let binary = std::env::current_exe().ok()?.with_file_name("dacapo");
    binary.exists().then_some(binary)
}
