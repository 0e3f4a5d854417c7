//! Webhooks: a job's end, told to an address that its client names.
//!
//! As [Standard Webhooks](https://www.standardwebhooks.com) has it: `webhook-id` is the same at every try, so that a
//! receiver does nothing twice; `webhook-signature` is the HMAC of id, time and body. That a job's end is to be told is
//! written when the end is, in one step, so none is forgotten when a server ends; any server that has webhooks sends it.
//!
//! An address is a client's, and the request is this machine's, which may reach what the client must not: the operator
//! names the hosts, and an address of a private network is refused at the connection, whatever a name resolves to.

mod deliver;
mod hosts;
mod networks;

pub use deliver::deliver;
pub use hosts::Hosts;
pub use networks::Network;

use crate::args::WebhookArguments;
use crate::store::Finished;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Url;
use serde_json::{Map, Value as Json, json};
use sha2::Sha256;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The fewest bytes of a secret, as the standard has it.
const SHORTEST: usize = 24;

/// The longest address.
const LONGEST: usize = 2048;

/// A job's end that is to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// Unlike every other one's.
    pub id: String,
    pub url: String,
    /// What [`told`] made of the end.
    pub body: String,
    /// JSON: what the client wrote beside the job.
    pub metadata: Option<String>,
    /// How many tries there were, this one too.
    pub attempts: i64,
}

/// What an operator allows.
#[derive(Debug)]
pub struct Webhooks {
    pub hosts: Hosts,
    /// The first signs, the others too: so that receivers can be given a new one without a gap.
    secrets: Vec<Vec<u8>>,
    /// What the addresses of pictures begin with, where receivers can reach this server.
    public: Option<Url>,
}

impl Webhooks {
    /// `None` where the operator allows no host.
    ///
    /// # Errors
    /// A sentence about an argument.
    pub fn of(arguments: &WebhookArguments) -> Result<Option<Self>, String> {
        let WebhookArguments { webhook_host, webhook_network, webhook_secret_file, public_url } =
            arguments;
        let Some(file) = webhook_secret_file.as_deref().filter(|_| !webhook_host.is_empty()) else {
            return Ok(None);
        };
        let hosts = Hosts::of(webhook_host, webhook_network.clone())?;
        let public = public_url.as_deref().map(|text| {
            let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            url.ok_or_else(|| {
                format!("--public-url: \"{text}\" is no address; https://images.example.com is")
            })
        });
        Ok(Some(Self { hosts, secrets: secrets(file)?, public: public.transpose()? }))
    }

    /// Whether a job may have its end told there.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn check(&self, text: &str) -> Result<(), String> {
        if text.len() > LONGEST {
            return Err(format!("the webhook's address is longer than {LONGEST} signs"));
        }
        let url = Url::parse(text)
            .map_err(|error| format!("the webhook \"{text}\" is no address: {error}"))?;
        self.hosts.check(&url)
    }

    /// The header `webhook-signature` of a message.
    fn signature(&self, id: &str, seconds: i64, body: &str) -> String {
        let sign = |secret: &Vec<u8>| {
            // An HMAC takes keys of every length.
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
            mac.update(format!("{id}.{seconds}.{body}").as_bytes());
            Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
        };
        self.secrets.iter().filter_map(sign).collect::<Vec<_>>().join(" ")
    }

    /// The body that is sent.
    fn body(&self, delivery: &Delivery) -> String {
        let mut body: Json = serde_json::from_str(&delivery.body).unwrap_or_default();
        if let Some(metadata) = delivery.metadata.as_deref() {
            body["data"]["metadata"] = serde_json::from_str(metadata).unwrap_or_default();
        }
        if let Some(public) = &self.public {
            let outputs = body["data"]["outputs"].as_object_mut();
            for output in outputs.into_iter().flat_map(Map::values_mut) {
                name_addresses(output, public);
            }
        }
        body.to_string()
    }
}

/// The secrets of a file, one a line; those that begin with `whsec_` are Base64, as the standard's tools make them.
fn secrets(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let sentence =
        |why: &dyn std::fmt::Display| format!("--webhook-secret-file {}: {why}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| sentence(&error))?;
    let mut secrets = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let secret = match line.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).map_err(|error| {
                sentence(&format!("what is behind whsec_ is no Base64: {error}"))
            })?,
            None => line.as_bytes().to_vec(),
        };
        if secret.len() < SHORTEST {
            return Err(sentence(&format!(
                "a secret has at least {SHORTEST} bytes; `openssl rand -base64 32` makes one"
            )));
        }
        secrets.push(secret);
    }
    if secrets.is_empty() {
        return Err(sentence(&"there is no secret in it"));
    }
    Ok(secrets)
}

/// Adds to each file of an output where it can be fetched.
fn name_addresses(output: &mut Json, public: &Url) {
    let lists = output.as_object_mut().into_iter().flat_map(Map::values_mut);
    for item in lists.filter_map(Json::as_array_mut).flatten() {
        let Some(name) = item["filename"].as_str().map(str::to_owned) else { continue };
        let part = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let (subfolder, kind) = (part("subfolder"), part("type"));
        let mut url = public.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("view");
        }
        url.query_pairs_mut()
            .append_pair("filename", &name)
            .append_pair("subfolder", &subfolder)
            .append_pair("type", &kind);
        item["url"] = url.to_string().into();
    }
}

/// What is told of a job's end, JSON.
pub fn told(job: &str, how: &Finished) -> String {
    let date = chrono::DateTime::from_timestamp_millis(how.ended).unwrap_or_default();
    let date = date.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let status = how.state.name();
    let mut data =
        json!({"job_id": job, "status": status, "ended_at": date, "outputs": how.outputs});
    if let Some(error) = &how.error {
        let part = |key: &str| error[key].clone();
        let message = error["exception_message"].as_str().unwrap_or_default().trim_end();
        data["error"] =
            json!({"message": message, "node_id": part("node_id"), "node_type": part("node_type")});
    }
    json!({"type": format!("job.{status}"), "timestamp": date, "data": data}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::State;

    fn webhooks(secrets: &[&[u8]], public: Option<&str>) -> Webhooks {
        let hosts = Hosts::of(&["hooks.example.com".into()], Vec::new()).unwrap();
        let public = public.map(|text| Url::parse(text).unwrap());
        Webhooks { hosts, secrets: secrets.iter().map(|secret| secret.to_vec()).collect(), public }
    }

    /// The value was computed by Python's hmac: base64(hmac.new(secret, b"msg_1.1700000000.{}", "sha256").digest()).
    #[test]
    fn signatures() {
        let secret = b"0123456789abcdef0123456789abcdef";
        let one = webhooks(&[secret], None).signature("msg_1", 1_700_000_000, "{}");
        assert_eq!(one, "v1,2c4VI0bO4Wd5svqP2unEA9pCk0dTAXr/elrHCJ+/efk=");
        let both = webhooks(&[secret, b"another"], None).signature("msg_1", 1_700_000_000, "{}");
        assert!(both.starts_with(&format!("{one} v1,")), "{both}");
    }

    #[test]
    fn secrets_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            secrets(&file)
        };
        let encoded = STANDARD.encode([7; 24]);
        assert_eq!(read(&format!("whsec_{encoded}\n\n")).unwrap(), [vec![7; 24]]);
        assert_eq!(read(&"a".repeat(24)).unwrap(), [b"a".repeat(24)]);
        for (text, said) in [("", "no secret"), ("short", "24 bytes"), ("whsec_§", "Base64")] {
            assert!(read(text).unwrap_err().contains(said), "{text}");
        }
        assert!(secrets(Path::new("/nowhere")).unwrap_err().contains("/nowhere"));
    }

    #[test]
    fn what_is_told() {
        let item = json!({"filename": "a b.png", "subfolder": "s", "type": "output"});
        let how = Finished {
            state: State::Failed,
            ended: 1_700_000_000_123,
            outputs: json!({"9": {"images": [item], "text": ["x"]}}),
            messages: json!([]),
            error: Some(
                json!({"exception_message": "no\n", "node_id": "3", "node_type": "K", "more": 1}),
            ),
        };
        let delivery = Delivery {
            id: "msg_1".into(),
            url: String::new(),
            body: told("job", &how),
            metadata: Some(r#"{"label": "red"}"#.into()),
            attempts: 1,
        };
        let body = webhooks(&[], Some("https://images.example.com/studio/")).body(&delivery);
        let mut item = json!({"filename": "a b.png", "subfolder": "s", "type": "output"});
        item["url"] =
            "https://images.example.com/studio/view?filename=a+b.png&subfolder=s&type=output"
                .into();
        let expected = json!({"type": "job.failed", "timestamp": "2023-11-14T22:13:20.123Z", "data": {
            "job_id": "job", "status": "failed", "ended_at": "2023-11-14T22:13:20.123Z",
            "outputs": {"9": {"images": [item], "text": ["x"]}},
            "error": {"message": "no", "node_id": "3", "node_type": "K"}, "metadata": {"label": "red"}}});
        assert_eq!(serde_json::from_str::<Json>(&body).unwrap(), expected);
    }
}
