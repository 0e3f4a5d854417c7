//! Who may use the server, and from which pages.
//!
//! Closed unless opened: on a loopback address every program of the machine may, but no page of a
//! stranger's that a browser on it shows; at any other address a token says who may.

use crate::app::App;
use crate::fault::Fault;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use blake3::Hash;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// The shortest token that is one.
const SHORTEST: usize = 16;

const COOKIE: &str = "kosmograph_session";

/// How long a browser stays logged in, in seconds: thirty days.
const SESSION: u32 = 30 * 24 * 3600;

/// What is let through without a token: it says nothing, or is how one gets in.
const OPEN: [&str; 5] = ["/healthz", "/readyz", "/login", "/kosmograph/page.css", "/api/v2/health"];

/// See the module.
pub struct Access {
    /// Of the tokens; none where everybody may.
    tokens: Vec<Hash>,
    /// Of the sessions, one for each token.
    sessions: Vec<Hash>,
    secret: [u8; 32],
    cors: Cors,
    /// The names by which the server may be called; empty where any will do.
    hosts: Vec<String>,
}

/// Whose pages may use the server besides its own.
#[derive(Debug, PartialEq, Eq)]
enum Cors {
    /// Those of these origins, in lower case; usually none.
    Named(Vec<String>),
    All,
}

impl Cors {
    fn of(given: &[String]) -> Result<Self, AccessError> {
        if given.iter().any(|origin| origin == "*") {
            return Ok(Self::All);
        }
        let origin = |given: &String| {
            // As it is copied from an address bar.
            let origin = given.strip_suffix('/').unwrap_or(given).to_ascii_lowercase();
            let is_authority = |rest: &str| !rest.is_empty() && !rest.contains(['/', '*', '@']);
            let is_origin = origin.split_once("://").is_some_and(|(_, rest)| is_authority(rest));
            let is_header = HeaderValue::from_str(&origin).is_ok();
            (is_origin && is_header)
                .then_some(origin)
                .ok_or_else(|| AccessError::Origin(given.clone()))
        };
        Ok(Self::Named(given.iter().map(origin).collect::<Result<_, _>>()?))
    }

    fn lets_in(&self, origin: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(origins) => origins.iter().any(|known| known.eq_ignore_ascii_case(origin)),
        }
    }
}

/// Why it cannot be said who may use the server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("--token-file {path}: cannot be read: {error}")]
    Unreadable { path: String, error: io::Error },
    #[error(
        "--token-file {path}: line {line} is shorter than {SHORTEST} signs, which can be guessed"
    )]
    Short { path: String, line: usize },
    #[error("--token-file {path}: has no token; write one of at least {SHORTEST} signs a line")]
    Empty { path: String },
    #[error("--cors {0}: is no origin; https://example.com is one, or * for all")]
    Origin(String),
}

impl Access {
    /// `is_loopback`: nobody but programs of this machine can connect. `secret` is what cookies are made
    /// with.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn new(
        token_file: Option<&Path>,
        cors: &[String],
        hosts: &[String],
        is_loopback: bool,
        secret: [u8; 32],
    ) -> Result<Self, AccessError> {
        let tokens = token_file.map(read_tokens).transpose()?.unwrap_or_default();
        let cors = Cors::of(cors)?;
        // Whoever needs a token, or listens to the world, may be called by any name. On a loopback address a
        // strange name is a page of a stranger's whose name leads here.
        let checks = is_loopback && tokens.is_empty();
        let hosts = if checks {
            let own = ["localhost".to_owned()].into_iter().chain(hostname());
            own.chain(hosts.iter().map(|host| host.to_ascii_lowercase())).collect()
        } else {
            Vec::new()
        };
        let sessions = tokens.iter().map(|token| blake3::keyed_hash(&secret, token.as_bytes()));
        let sessions = sessions.collect();
        Ok(Self { tokens, sessions, secret, cors, hosts })
    }

    /// Whether a token is asked for.
    pub fn is_closed(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// The cookie of a browser that knows `token`; `is_secure` where it goes over TLS alone.
    pub fn session(&self, token: &str, is_secure: bool) -> Option<String> {
        let hash = blake3::hash(token.trim().as_bytes());
        // Comparing hashes of this kind takes as long for every one.
        self.tokens.contains(&hash).then(|| {
            let session = blake3::keyed_hash(&self.secret, hash.as_bytes()).to_hex();
            let secure = if is_secure { "; Secure" } else { "" };
            format!(
                "{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION}{secure}"
            )
        })
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        if bearer.is_some_and(|token| self.tokens.contains(&blake3::hash(token.as_bytes()))) {
            return true;
        }
        let cookies = text(header::COOKIE).into_iter().flat_map(|cookies| cookies.split(';'));
        let sessions =
            cookies.filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        sessions
            .filter_map(|hex| Hash::from_hex(hex).ok())
            .any(|hash| self.sessions.contains(&hash))
    }

    /// Why the page that a request comes from may not make it.
    fn refuses(&self, headers: &HeaderMap) -> Option<String> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text("host").unwrap_or_default().to_ascii_lowercase();
        if !self.hosts.is_empty() && !host.is_empty() {
            let name = without_port(&host);
            let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
            if !is_address && !self.hosts.iter().any(|known| known == name) {
                return Some(format!(
                    "this server is not called {name}; a proxy's name for it is told with --host-name {name}"
                ));
            }
        }
        if self.cors == Cors::All {
            return None;
        }
        // A picture or a link in a page comes without Origin; the page is then told by its address.
        let page = text("origin").or_else(|| text("referer").map(origin_of));
        if page.is_some_and(|page| self.cors.lets_in(page)) {
            return None;
        }
        if text("sec-fetch-site") == Some("cross-site") {
            return Some("pages of other sites may not use this server".to_owned());
        }
        let origin = text("origin")?.to_ascii_lowercase();
        let authority = origin.split_once("://").map_or(origin.as_str(), |(_, rest)| rest);
        let has_port = |name: &str| without_port(name) != name;
        let same = match has_port(&host) && has_port(authority) {
            true => host == authority,
            false => without_port(&host) == without_port(authority),
        };
        (!same && !host.is_empty()).then(|| {
            format!("a page of {origin} may not use this server, which is {host}; --cors {origin} allows it")
        })
    }

    /// Tells the browser that a page of `origin` may read the answer, where it may.
    fn allow(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        let fixed = HeaderValue::from_static;
        let allowed = match &self.cors {
            Cors::All => fixed("*"),
            Cors::Named(origins) if origins.is_empty() => return,
            Cors::Named(_) => {
                // No cache is to give one page what another one was told.
                headers.append(header::VARY, fixed("Origin"));
                let named = origin
                    .filter(|origin| origin.to_str().is_ok_and(|text| self.cors.lets_in(text)));
                let Some(origin) = named else { return };
                origin
            }
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            fixed("POST, GET, DELETE, PUT, OPTIONS, PATCH"),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fixed("Content-Type, Authorization"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, fixed("true"));
    }
}

/// The scheme and authority of an address.
fn origin_of(address: &str) -> &str {
    let begin = address.find("://").map_or(0, |at| at + 3);
    address[begin..].find('/').map_or(address, |length| &address[..begin + length])
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // An address of version 6 has colons of its own, in brackets.
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

fn hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty())
}

fn read_tokens(path: &Path) -> Result<Vec<Hash>, AccessError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| AccessError::Unreadable { path: name.clone(), error })?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let token = line.trim();
        if token.is_empty() || token.starts_with('#') {
            continue;
        }
        if token.len() < SHORTEST {
            return Err(AccessError::Short { path: name, line: number + 1 });
        }
        tokens.push(blake3::hash(token.as_bytes()));
    }
    if tokens.is_empty() { Err(AccessError::Empty { path: name }) } else { Ok(tokens) }
}

/// The secret of cookies, kept in `folder` so that a restart logs nobody out.
///
/// # Errors
/// It can be neither read nor written.
pub fn secret(folder: &Path) -> io::Result<[u8; 32]> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join("secret");
    if let Ok(bytes) = std::fs::read(&path)
        && let Ok(secret) = <[u8; 32]>::try_from(bytes)
    {
        return Ok(secret);
    }
    let mut secret = [0; 32];
    secret[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    secret[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    let mut options = std::fs::File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, &secret)?;
    Ok(secret)
}

/// Lets a request through, or says why not.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let access = &app.access;
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match check(access, &request) {
        Ok(()) => next.run(request).await,
        Err(response) => *response,
    };
    access.allow(origin, response.headers_mut());
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

fn check(access: &Access, request: &Request) -> Result<(), Box<Response>> {
    let refused = |sentence| {
        Box::new(Fault::new(StatusCode::FORBIDDEN, "forbidden", sentence).into_response())
    };
    let path = request.uri().path();
    // What one reader takes for the name another one need not.
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        let sentence = "the request names its host twice; one Host header is allowed";
        let fault = Fault::new(StatusCode::BAD_REQUEST, "invalid_request", sentence);
        return Err(Box::new(fault.into_response()));
    }
    // Whoever watches over the server may call it what he likes.
    if path == "/healthz" || path == "/readyz" {
        return Ok(());
    }
    if request.method() == Method::OPTIONS {
        return Err(Box::new(Response::new(Body::empty())));
    }
    if let Some(sentence) = access.refuses(request.headers()) {
        return Err(refused(sentence));
    }
    if !access.is_closed() || OPEN.contains(&path) || access.knows(request.headers()) {
        return Ok(());
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if request.method() == Method::GET && accept.is_some_and(|accept| accept.contains("text/html"))
    {
        return Err(Box::new(Redirect::to("/login").into_response()));
    }
    let sentence = "a token is needed: Authorization: Bearer TOKEN, or log in at /login";
    let mut response =
        Fault::new(StatusCode::UNAUTHORIZED, "unauthorized", sentence).into_response();
    let bearer = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
    Err(Box::new(response))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(tokens: Option<&Path>, is_loopback: bool) -> Access {
        Access::new(tokens, &[], &["studio.example".into()], is_loopback, [7; 32]).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn pages_of_strangers_are_refused() {
        let access = access(None, true);
        let refuses = |pairs: &[(&'static str, &str)]| access.refuses(&headers(pairs)).is_some();
        assert!(!refuses(&[("host", "127.0.0.1:8188")]));
        assert!(!refuses(&[("host", "localhost:8188"), ("origin", "http://localhost:8188")]));
        assert!(!refuses(&[("host", "localhost:8188"), ("origin", "http://localhost")]));
        assert!(!refuses(&[("host", "[::1]:8188"), ("origin", "http://[::1]:8188")]));
        assert!(!refuses(&[("host", "studio.example"), ("origin", "https://studio.example")]));
        assert!(refuses(&[("host", "localhost:8188"), ("origin", "http://localhost:9")]));
        assert!(refuses(&[("host", "127.0.0.1:8188"), ("origin", "https://evil.example")]));
        assert!(refuses(&[("host", "127.0.0.1:8188"), ("origin", "null")]));
        assert!(refuses(&[("host", "evil.example:8188")]), "a name that leads here");
        assert!(refuses(&[("host", "evil.example"), ("origin", "http://evil.example")]));
        assert!(refuses(&[("host", "127.0.0.1"), ("sec-fetch-site", "cross-site")]));
        assert!(!refuses(&[("host", "127.0.0.1"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn a_named_origin_is_let_in_and_no_other() {
        let named = ["https://Studio.example/".into(), "http://localhost:3000".into()];
        let access = Access::new(None, &named, &[], true, [7; 32]).unwrap();
        let host = ("host", "127.0.0.1:8188");
        let refuses = |pair: (&'static str, &str)| {
            let site = ("sec-fetch-site", "cross-site");
            access.refuses(&headers(&[host, pair, site])).is_some()
        };
        assert!(!refuses(("origin", "https://studio.example")));
        assert!(!refuses(("origin", "http://localhost:3000")));
        assert!(!refuses(("referer", "https://studio.example/page?a=/b")), "a picture in its page");
        for stranger in [
            "https://evil.example",
            "http://studio.example",
            "https://studio.example.evil.example",
            "https://studio.example:8443",
            "http://localhost:3001",
            "null",
        ] {
            assert!(refuses(("origin", stranger)), "{stranger}");
            assert!(
                refuses(("referer", &format!("{stranger}/https://studio.example"))),
                "{stranger}"
            );
        }
        assert!(access.refuses(&headers(&[host])).is_none(), "a program");
        assert!(access.refuses(&headers(&[host, ("origin", "http://127.0.0.1:8188")])).is_none());
        let told = |origin: &'static str| {
            let mut answer = HeaderMap::new();
            access.allow(Some(HeaderValue::from_static(origin)), &mut answer);
            assert_eq!(answer[header::VARY], "Origin");
            answer.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        };
        assert!(told("https://studio.example") && !told("https://evil.example"));
        let all = Access::new(None, &["*".into()], &[], true, [7; 32]).unwrap();
        assert!(all.refuses(&headers(&[host, ("origin", "https://evil.example")])).is_none());
    }

    #[test]
    fn a_token_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, "# mine\n\nabcdefghijklmnop\n").unwrap();
        let access = access(Some(&path), false);
        let knows = |name: &'static str, value: &str| access.knows(&headers(&[(name, value)]));
        assert!(knows("authorization", "Bearer abcdefghijklmnop"));
        assert!(knows("authorization", "bearer  abcdefghijklmnop"));
        assert!(!knows("authorization", "Bearer abcdefghijklmno"));
        assert!(!knows("authorization", "Basic abcdefghijklmnop"));
        let cookie = access.session("abcdefghijklmnop", false).unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        assert!(!cookie.contains("abcdefgh"), "a cookie is not the token");
        let pair = cookie.split(';').next().unwrap();
        assert!(
            knows("cookie", &format!("a=b; {pair}")) && !knows("cookie", "kosmograph_session=00")
        );
        assert_eq!(access.session("wrong", false), None);
        let other = Access::new(Some(&path), &[], &[], false, [8; 32]).unwrap();
        assert!(!other.knows(&headers(&[("cookie", pair)])), "of another server");
    }

    #[test]
    fn files_of_tokens_that_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let told = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Access::new(Some(&path), &[], &[], false, [7; 32]).err().unwrap().to_string()
        };
        assert!(told("").contains("no token"));
        assert!(told("abcdefghijklmnop\nshort\n").contains("line 2"));
        let missing = folder.path().join("none");
        assert!(Access::new(Some(&missing), &[], &[], false, [7; 32]).is_err());
        for none in ["x", "https://", "https://a/b", "https://*.example", ""] {
            assert!(Access::new(None, &[none.into()], &[], true, [7; 32]).is_err(), "{none}");
        }
    }

    #[test]
    fn a_new_secret_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = secret(folder.path()).unwrap();
        assert_eq!(secret(folder.path()).unwrap(), first);
        assert_ne!(first, [0; 32]);
    }
}
