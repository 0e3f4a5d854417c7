//! The command line of `kosmograph serve`.

use crate::bucket::is_bucket;
use crate::webhook::Network;
use clap::Args;
use kosmograph::args::Places;
use kosmograph::execute::Budget;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where ComfyUI listens, too.
const PORT: u16 = 8188;

/// A queue that many machines share.
#[derive(Debug, Args)]
pub struct Shared {
    /// The queue of many machines, postgres://USER@HOST/DATABASE or redis://HOST/; @FILE reads it from a file, whose password no
    /// list of processes shows (docs/fleet.md)
    #[arg(long, value_name = "URL")]
    pub queue: Option<String>,
    /// The certificates that the queue's is to come from, PEM, where its address asks for TLS (sslmode=require,
    /// rediss://) [default: what the system trusts]
    #[arg(long, value_name = "FILE", requires = "queue")]
    pub queue_ca: Option<PathBuf>,
    /// Where pictures go in and out, in the place of --input and --out: a folder that all servers and workers
    /// see, or a bucket, s3://BUCKET/PREFIX (docs/fleet.md)
    #[arg(long, value_name = "DIR|URL", conflicts_with_all = ["input", "out"])]
    pub store: Option<PathBuf>,
    /// The most that is kept here of what lies in the bucket
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size)]
    pub store_cache: u64,
}

impl Shared {
    /// The bucket that pictures go through, where they do.
    pub fn bucket(&self) -> Option<&str> {
        self.store.as_deref()?.to_str().filter(|text| is_bucket(text))
    }

    /// The folder that pictures go through, where it is one: `state` has the copy of a bucket.
    pub fn folder(&self, state: &Path) -> Option<PathBuf> {
        match self.bucket() {
            Some(_) => Some(state.join("store")),
            None => self.store.clone(),
        }
    }

    /// The queue's address, where there is one.
    ///
    /// # Errors
    /// A sentence: the file that it is in cannot be read.
    pub fn address(&self) -> Result<Option<String>, String> {
        let Some(said) = &self.queue else { return Ok(None) };
        match said.strip_prefix('@') {
            None => Ok(Some(said.clone())),
            Some(file) => match std::fs::read_to_string(file) {
                Ok(text) => Ok(Some(text.trim().to_owned())),
                Err(error) => Err(format!("--queue: {file}: {error}")),
            },
        }
    }
}

/// Jobs from standard input, or from a queue that many machines share.
#[derive(Debug, Args)]
pub struct Worker {
    #[command(flatten)]
    pub here: kosmograph::args::Worker,
    #[command(flatten)]
    pub shared: Shared,
    #[command(flatten)]
    pub places: Places,
    /// How many jobs run side by side, each in a process of its own with its own models
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// The most that models and kept results of a process may take, 6G or 75% of the memory there is
    #[arg(long, value_name = "SIZE", default_value = "60%")]
    pub memory_budget: Budget,
    /// Previews are kept below it until they are fetched [default: $XDG_STATE_HOME/kosmograph/worker]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Show pictures of what is being made to jobs that do not say whether they want them
    #[arg(long)]
    pub previews: bool,
    /// A job that takes longer is ended, in seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub job_timeout: Option<u64>,
    /// Let node libraries do whatever this user may
    #[arg(long)]
    pub no_sandbox: bool,
    /// How many finished jobs the history keeps
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub history_limit: u64,
    /// How long a running job may go on after SIGTERM, in seconds; then it is put back into the queue
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub stop_grace: u64,
    /// When nobody has heard of this worker for so many seconds, others take its jobs
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease: u64,
}

impl Worker {
    /// The first of the arguments that only a worker of a queue heeds.
    pub fn for_a_queue(&self) -> Option<&'static str> {
        let Places { out, input, models, extra_model_paths, plugins, .. } = &self.places;
        let given = [
            ("--models", !models.is_empty()),
            ("--store", self.shared.store.is_some()),
            ("--out", out.is_some()),
            ("--input", input.is_some()),
            ("--extra-model-paths", !extra_model_paths.is_empty()),
            ("--plugins", !plugins.is_empty()),
            ("--state", self.state.is_some()),
            ("--previews", self.previews),
            ("--job-timeout", self.job_timeout.is_some()),
            ("--no-sandbox", self.no_sandbox),
        ];
        given.into_iter().find_map(|(argument, is_given)| is_given.then_some(argument))
    }
}

/// Whom the ends of jobs may be told.
#[derive(Debug, Default, Args)]
pub struct WebhookArguments {
    /// A host that a job's "webhook_url" may name: hooks.example.com, *.example.com or http://10.0.0.5:9000; may be
    /// given several times (docs/fleet.md)
    #[arg(long, value_name = "HOST", requires = "webhook_secret_file")]
    pub webhook_host: Vec<String>,
    /// A private network that their names may lead to, 10.0.0.0/8; may be given several times
    #[arg(long, value_name = "NETWORK", requires = "webhook_host")]
    pub webhook_network: Vec<Network>,
    /// What webhooks are signed with: a file with a secret a line, whsec_… or at least 24 signs; the first signs,
    /// and the others too
    #[arg(long, value_name = "FILE", requires = "webhook_host")]
    pub webhook_secret_file: Option<PathBuf>,
    /// What addresses of pictures in webhooks begin with, https://images.example.com
    #[arg(long, value_name = "URL", requires = "webhook_host")]
    pub public_url: Option<String>,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen, ADDRESS[:PORT]; several with commas. Other machines reach it only if this is no
    /// loopback address, which needs --token-file or --no-auth
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8188", value_delimiter = ',')]
    pub listen: Vec<Listen>,
    #[command(flatten)]
    pub shared: Shared,
    #[command(flatten)]
    pub webhooks: WebhookArguments,
    #[command(flatten)]
    pub places: Places,
    /// Queue, history, settings and the editor's files [default: $XDG_STATE_HOME/kosmograph, or
    /// ~/.local/state/kosmograph]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How many jobs run side by side, each in a process of its own with its own models
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "queue")]
    pub workers: u16,
    /// The most that models and kept results of a worker may take, 6G or 75% of the memory there is
    #[arg(long, value_name = "SIZE", default_value = "60%")]
    pub memory_budget: Budget,
    /// The most memory that a worker may take for itself, mapped model files not counted [default: what
    /// there is, less a reserve]
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<Budget>,
    /// The folder of the official frontend; without it, it is looked for where Python's package
    /// comfyui-frontend-package is installed
    #[arg(long, value_name = "DIR")]
    pub frontend: Option<PathBuf>,
    /// Show the own page even if the official frontend is there
    #[arg(long, conflicts_with = "frontend")]
    pub no_frontend: bool,
    /// The workflows that the own page offers [default: ./workflows]
    #[arg(long, value_name = "DIR")]
    pub workflows: Option<PathBuf>,
    /// Who may use the server: a file with a token of at least 16 signs a line. Programs send it as
    /// Authorization: Bearer TOKEN, browsers once, to a login page
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Let everybody who reaches the address use the server: for containers behind a proxy that checks
    #[arg(long, conflicts_with = "token_file")]
    pub no_auth: bool,
    /// Speak TLS, with this certificate (PEM, the chain behind it)
    #[arg(long, value_name = "FILE", requires = "tls_keyfile")]
    pub tls_certfile: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certfile")]
    pub tls_keyfile: Option<PathBuf>,
    /// Let pages of this origin use the server besides its own, https://example.com; may be given several
    /// times. * or nothing lets in every page of the web
    #[arg(long, value_name = "ORIGIN", num_args = 0..=1, default_missing_value = "*")]
    pub cors: Vec<String>,
    /// A name by which a proxy calls the server, besides those of the machine itself; may be given
    /// several times
    #[arg(long, value_name = "NAME")]
    pub host_name: Vec<String>,
    /// Show pictures of what is being made to jobs that do not say whether they want them; some clients
    /// take each for a result
    #[arg(long)]
    pub previews: bool,
    /// A job that takes longer is ended, in seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub job_timeout: Option<u64>,
    /// Let workers do whatever the server may: read every file, use the network, start programs
    #[arg(long)]
    pub no_sandbox: bool,
    /// How many jobs may wait; then submitting is answered with 429
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub queue_limit: usize,
    /// How many finished jobs the history keeps
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub history_limit: u64,
    /// The most that the output folder may hold, 20G: what is in it is deleted from the oldest on, by
    /// whomever it was put there [default: all is kept]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub keep_outputs: Option<u64>,
    /// The largest request in bytes, 100M
    #[arg(long, value_name = "SIZE", default_value = "100M")]
    pub upload_limit: Budget,
    /// How long a running job may go on after SIGTERM, in seconds; then it is put back into the queue
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub stop_grace: u64,
}

/// A size in bytes; a part of the memory is none.
fn size(text: &str) -> Result<u64, String> {
    match text.parse::<Budget>() {
        Ok(Budget::Percent(_)) => Err(format!("\"{text}\" is no size; 500M or 20G is")),
        Ok(budget) => Ok(budget.bytes()),
        Err(error) => Err(error.to_string()),
    }
}

/// An address to listen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim().replace("localhost", "127.0.0.1");
        let with_port = text.parse::<SocketAddr>();
        let plain = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match (with_port, plain) {
            (Ok(address), _) => Ok(Self(address)),
            (_, Ok(address)) => Ok(Self(SocketAddr::new(address, PORT))),
            _ => Err(format!("\"{text}\" is no address; 127.0.0.1, 0.0.0.0:8188 or [::1]:8188 is")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let listen = |text: &str| text.parse::<Listen>().map(|listen| listen.0.to_string());
        assert_eq!(listen("127.0.0.1").as_deref(), Ok("127.0.0.1:8188"));
        assert_eq!(listen("localhost:0").as_deref(), Ok("127.0.0.1:0"));
        assert_eq!(listen("[::1]:9").as_deref(), Ok("[::1]:9"));
        assert_eq!(listen("::1").as_deref(), Ok("[::1]:8188"));
        assert!(listen("nowhere:1").is_err() && listen("").is_err());
    }
}
