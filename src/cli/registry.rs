//! `acetate registry`: what a registry has; and how all commands that reach one are told to.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, output};
use crate::image::registry::{Registry, RegistryConfig, RegistryOptions, registry_host};
use crate::image::{ImageError, Reference};

/// How registries are reached.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Registry options")]
pub(super) struct ReachArgs {
    /// Check certificates and refuse plain http; `=false` does neither [default: false for this machine's own
    /// addresses and for insecure registries]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: Option<bool>,
    /// The same as --tls-verify=false
    #[arg(long, conflicts_with = "tls_verify")]
    insecure: bool,
    /// A folder with authorities to trust (*.crt) and certificates to show (*.cert, *.key)
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// The file of credentials, instead of docker's and podman's [env: REGISTRY_AUTH_FILE]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// A mirror of the default registry to ask first; may be repeated
    #[arg(long, value_name = "URL")]
    registry_mirror: Vec<String>,
    /// The configuration file, instead of /etc/acetate/config.json and the user's [env: ACETATE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ReachArgs {
    pub(super) fn registry(&self) -> Result<Registry, ImageError> {
        let variable = std::env::var_os("ACETATE_CONFIG").filter(|value| !value.is_empty());
        let named = self.config.clone().or(variable.map(PathBuf::from));
        let mut config = RegistryConfig::read(named.as_deref())?;
        // Those of the command line first, but the others are mirrors as well.
        config
            .mirrors
            .splice(0..0, self.registry_mirror.iter().cloned());
        Registry::new(RegistryOptions {
            config,
            tls_verify: self.tls_verify.or(self.insecure.then_some(false)),
            cert_dir: self.cert_dir.clone(),
            auth_file: self.authfile.clone(),
        })
    }
}

/// Lists what a registry has
#[derive(Args, Debug)]
pub(super) struct RegistryArgs {
    #[command(subcommand)]
    command: RegistryCommand,
}

#[derive(Debug, Subcommand)]
enum RegistryCommand {
    Catalog(CatalogArgs),
    Tags(TagsArgs),
}

impl RegistryArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            RegistryCommand::Catalog(arguments) => arguments.run(),
            RegistryCommand::Tags(arguments) => arguments.run(),
        }
    }
}

/// Lists the repositories of a registry
#[derive(Args, Debug)]
struct CatalogArgs {
    /// Host and port
    #[arg(value_name = "HOST")]
    host: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// The repositories, for programs; as the registry itself gives them.
#[derive(Serialize)]
struct CatalogJson {
    repositories: Vec<String>,
}

impl CatalogArgs {
    fn run(self) -> Result<(), CliError> {
        let host = registry_host(&self.host)?;
        let registry = self.reach.registry()?;
        let repositories = registry.catalog(&host).map_err(ImageError::from)?;
        if self.json {
            return Ok(output::json(&CatalogJson { repositories })?);
        }
        Ok(output::lines(
            repositories.iter().map(|name| output::escape(name)),
        )?)
    }
}

/// Lists the tags of a repository
#[derive(Args, Debug)]
struct TagsArgs {
    /// The repository, with its registry
    #[arg(value_name = "REPOSITORY")]
    repository: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// The tags, for programs; as the registry itself gives them.
#[derive(Serialize)]
struct TagsJson {
    name: String,
    tags: Vec<String>,
}

impl TagsArgs {
    fn run(self) -> Result<(), CliError> {
        let reference = Reference::parse(&self.repository)?;
        let registry = self.reach.registry()?;
        let tags = registry
            .tags(reference.registry(), reference.repository())
            .map_err(ImageError::from)?;
        if self.json {
            return Ok(output::json(&TagsJson {
                name: reference.repository().to_owned(),
                tags,
            })?);
        }
        Ok(output::lines(tags.iter().map(|tag| output::escape(tag)))?)
    }
}
