//! A registry that wants tokens, and the server that gives them: both in front of a registry that lets everybody in.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;

use crate::proxy::{Listening, head, value};

/// Who may do what.
#[derive(Clone)]
pub struct Guests {
    pub user: &'static str,
    pub password: &'static str,
    /// What docker keeps instead of a password.
    pub identity: &'static str,
    /// The repository that the user may change, and everybody may read.
    pub repository: &'static str,
}

#[derive(Default)]
struct State {
    /// Tokens that are good, and what they are good for: `repository:NAME:ACTION`.
    tokens: HashMap<String, Vec<String>>,
    given: usize,
    /// Kinds of requests, of which the next one finds its token run out.
    expiring: Vec<&'static str>,
    /// What was asked of the token server: who, and the scope.
    asked: Vec<(String, String)>,
    /// What the registry was shown.
    shown: Vec<String>,
}

struct Shared {
    upstream: SocketAddr,
    address: SocketAddr,
    guests: Guests,
    state: Mutex<State>,
}

/// It ends when it is dropped.
pub struct Gate {
    shared: Arc<Shared>,
    _listening: Listening,
}

impl Gate {
    pub fn start(upstream: SocketAddr, guests: Guests) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            upstream,
            address: listener.local_addr().unwrap(),
            guests,
            state: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let ended = Arc::new(AtomicBool::new(false));
        let listening = Listening::start(listener, ended, move |client| serving.serve(client));
        Gate {
            shared,
            _listening: listening,
        }
    }

    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// The next request of each of these kinds finds that its token has run out.
    pub fn expire_at(&self, kinds: &[&'static str]) {
        self.shared.state.lock().unwrap().expiring = kinds.to_vec();
    }

    /// Those that have not come yet.
    pub fn expiring(&self) -> Vec<&'static str> {
        self.shared.state.lock().unwrap().expiring.clone()
    }

    /// What the token server was asked since the last time: who, and the scope.
    pub fn asked(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.shared.state.lock().unwrap().asked)
    }

    /// The kinds of credentials that the registry itself was shown.
    pub fn shown(&self) -> Vec<String> {
        self.shared.state.lock().unwrap().shown.clone()
    }
}

/// `GET blob`, `PUT upload` and the like.
fn kind_of(method: &str, path: &str) -> String {
    let what = ["uploads", "blobs", "manifests"]
        .iter()
        .find(|part| path.contains(&format!("/{part}/")));
    format!("{method} {}", what.unwrap_or(&"other"))
}

/// The repository of a path below `/v2/`.
fn repository(path: &str) -> &str {
    let rest = path.trim_start_matches("/v2/");
    let end = ["/blobs/", "/manifests/", "/tags/"]
        .iter()
        .find_map(|part| rest.find(part));
    &rest[..end.unwrap_or(0)]
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut reader = BufReader::new(client);
        let Some((first, headers)) = head(&mut reader)? else {
            return Ok(());
        };
        let mut words = first.split(' ');
        let method = words.next().unwrap_or_default();
        let target = words.next().unwrap_or_default();
        let length: u64 = value(&headers, "content-length").map_or(0, |v| v.parse().unwrap());
        let shown = value(&headers, "authorization");
        let mut body = (&mut reader).take(length);
        let url = url(target);
        if url.0 == "/token" {
            let mut form = String::new();
            body.read_to_string(&mut form)?;
            let fields = if method == "POST" {
                pairs(&form)
            } else {
                url.1
            };
            return match self.token(&fields, shown) {
                Some(token) => {
                    let text = format!(r#"{{"token":"{token}","expires_in":300}}"#);
                    write!(
                        &mut &*client,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                        text.len()
                    )
                }
                None => refuse(client, "", "wrong user or password"),
            };
        }
        if let Err(scope) = self.admitted(method, &url.0, shown) {
            io::copy(&mut body, &mut io::sink())?;
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"test\",scope=\"{scope}\"\r\n",
                self.address
            );
            return refuse(client, &challenge, "authentication required");
        }
        let mut upstream = TcpStream::connect(self.upstream)?;
        upstream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut request = format!("{first}\r\n");
        for (name, text) in &headers {
            let ours = ["connection", "authorization", "expect"]
                .iter()
                .any(|own| name.eq_ignore_ascii_case(own));
            if !ours {
                request.push_str(&format!("{name}: {text}\r\n"));
            }
        }
        request.push_str("Connection: close\r\n\r\n");
        upstream.write_all(request.as_bytes())?;
        io::copy(&mut body, &mut upstream)?;
        io::copy(&mut upstream, &mut &*client)?;
        Ok(())
    }

    /// Lets a request in, or says what scope it needs.
    fn admitted(&self, method: &str, path: &str, shown: Option<&str>) -> Result<(), String> {
        let mut state = self.state.lock().unwrap();
        let scheme = shown.unwrap_or("nothing").split(' ').next();
        state.shown.extend(scheme.map(str::to_owned));
        let repository = repository(path);
        let reads = matches!(method, "GET" | "HEAD");
        let needed = match repository {
            "" => Vec::new(),
            name if reads => vec![format!("repository:{name}:pull")],
            name => vec![
                format!("repository:{name}:pull"),
                format!("repository:{name}:push"),
            ],
        };
        let scope = match repository {
            "" => String::new(),
            name if reads => format!("repository:{name}:pull"),
            name => format!("repository:{name}:pull,push"),
        };
        let token = shown.and_then(|text| text.strip_prefix("Bearer "));
        let Some(token) = token else {
            return Err(scope);
        };
        let Some(granted) = state.tokens.get(token) else {
            return Err(scope);
        };
        if !needed.iter().all(|need| granted.contains(need)) {
            return Err(scope);
        }
        let kind = kind_of(method, path);
        if let Some(at) = state.expiring.iter().position(|k| *k == kind) {
            state.expiring.remove(at);
            // For whoever else has it as well.
            state.tokens.remove(token);
            return Err(scope);
        }
        Ok(())
    }

    /// A new token; `None` for whom nobody knows. It grants of what was asked for what its owner may have.
    fn token(&self, fields: &[(String, String)], shown: Option<&str>) -> Option<String> {
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, v)| v);
        let scopes: Vec<String> = fields
            .iter()
            .filter(|(key, _)| key == "scope")
            .flat_map(|(_, value)| value.split(' ').map(str::to_owned))
            .collect();
        let guests = &self.guests;
        let who = match (shown, field("refresh_token")) {
            (None, None) => "nobody",
            (None, Some(token)) if token == guests.identity => "identity",
            (Some(shown), None) => {
                let known = format!("{}:{}", guests.user, guests.password);
                let known = base64::engine::general_purpose::STANDARD.encode(known);
                if shown != format!("Basic {known}") {
                    return None;
                }
                "user"
            }
            _ => return None,
        };
        if field("service")? != "test" {
            return None;
        }
        let mut granted = Vec::new();
        for scope in &scopes {
            let (name, actions) = scope.rsplit_once(':')?;
            let ours = name == format!("repository:{}", guests.repository);
            for action in actions.split(',') {
                if ours && (action == "pull" || who != "nobody") {
                    granted.push(format!("{name}:{action}"));
                }
            }
        }
        let mut state = self.state.lock().unwrap();
        state.given += 1;
        state.asked.push((who.to_owned(), scopes.join(" ")));
        let token = format!("token-{}", state.given);
        state.tokens.insert(token.clone(), granted);
        Some(token)
    }
}

fn refuse(mut client: &TcpStream, headers: &str, why: &str) -> io::Result<()> {
    let text = format!(r#"{{"errors":[{{"code":"UNAUTHORIZED","message":"{why}"}}]}}"#);
    write!(
        client,
        "HTTP/1.1 401 Unauthorized\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

/// Path and fields of a request's target.
fn url(target: &str) -> (String, Vec<(String, String)>) {
    match target.split_once('?') {
        Some((path, query)) => (path.to_owned(), pairs(query)),
        None => (target.to_owned(), Vec::new()),
    }
}

fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = std::str::from_utf8(&after[..2]).unwrap();
                rest = &after[2..];
                u8::from_str_radix(hex, 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}
