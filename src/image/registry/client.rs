//! Requests to one place: signed, tried again, and their answers taken with limits.

use std::time::Duration;

use reqwest::{Client as Http, Method, RequestBuilder, Response, StatusCode, Url};

use super::RegistryOptions;
use super::auth::Auth;
use super::credentials::Login;
use super::endpoint::Endpoint;
use super::error::{self, Question, RegistryError};
use super::retry::{self, Backoff};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(15);
/// How long an answer may pause.
const PAUSE: Duration = Duration::from_secs(60);
/// How much of a refusal is read.
const REFUSAL: usize = 64 << 10;

/// A connection to one registry or mirror.
#[derive(Debug)]
pub(super) struct Client {
    /// Immutable.
    http: Http,
    /// Immutable: repositories lie below its `v2/`.
    base: Url,
    /// Immutable: host and port, for messages.
    name: String,
    /// Immutable.
    auth: Auth,
}

impl Client {
    /// Finds the address that answers.
    pub(super) async fn connect(
        endpoint: &Endpoint,
        options: &RegistryOptions,
        login: Option<Login>,
    ) -> Result<Client, RegistryError> {
        let unreachable = |why: String| RegistryError::Unreachable {
            host: endpoint.name.clone(),
            why,
        };
        let builder = Http::builder()
            .user_agent(concat!("acetate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(PAUSE)
            .pool_idle_timeout(Duration::from_secs(30));
        let http = endpoint
            .add_certificates(builder, options)?
            .build()
            .map_err(|e| unreachable(error::reason(&e)))?;
        let mut client = Client {
            http,
            base: endpoint.addresses[0].clone(),
            name: endpoint.name.clone(),
            auth: Auth::new(login),
        };
        let mut first = None;
        for address in &endpoint.addresses {
            client.base = address.clone();
            let ping = client.url("v2/")?;
            match client.retried(|http| http.get(ping.clone())).await {
                Ok(answer) => {
                    // The challenge comes with this answer, so that later requests need not be sent twice.
                    if answer.status() == StatusCode::UNAUTHORIZED
                        && client.is_ours(answer.url())
                        && client.auth.has_login()
                    {
                        client.auth.prefer_basic(answer.headers());
                    }
                    return Ok(client);
                }
                // The first address is the one that should work.
                Err(e) => first = first.or(Some(e)),
            }
        }
        Err(first.unwrap_or_else(|| unreachable("it has no address".to_owned())))
    }

    /// Host and port.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What addresses begin with.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// The address of `path` below the registry's.
    pub(super) fn url(&self, path: &str) -> Result<Url, RegistryError> {
        self.base.join(path).map_err(|e| RegistryError::Wrong {
            host: self.name.clone(),
            what: path.to_owned(),
            why: e.to_string(),
        })
    }

    /// An address that the registry gave, which may be relative. Anything but http would be a way to read other things.
    pub(super) fn resolve(&self, beside: &Url, text: &str) -> Result<Url, RegistryError> {
        let wrong = |why: String| RegistryError::Wrong {
            host: self.name.clone(),
            what: "an address".to_owned(),
            why,
        };
        let url = beside
            .join(text)
            .map_err(|e| wrong(format!("{text:?}: {e}")))?;
        if url.scheme() == "https" || url.scheme() == self.base.scheme() && url.scheme() == "http" {
            return Ok(url);
        }
        Err(wrong(format!("{text:?} is of another scheme")))
    }

    /// Sends a request until it is answered by something that will not pass by itself.
    pub(super) async fn retried(
        &self,
        make: impl Fn(&Http) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let mut backoff = Backoff::default();
        loop {
            let asked = match make(&self.http).send().await {
                Ok(answer) if retry::is_transient(answer.status()) => {
                    let asked = retry::retry_after(&answer);
                    match backoff.next(asked) {
                        None => return Ok(answer),
                        Some(pause) => {
                            log::info!("{}: {}: waiting", self.name, answer.status());
                            pause
                        }
                    }
                }
                Ok(answer) => return Ok(answer),
                Err(e) => {
                    let why = error::reason(&e);
                    let pause = retry::may_pass(&e).then(|| backoff.next(None)).flatten();
                    match pause {
                        Some(pause) => {
                            log::info!("{}: {why}: waiting", self.name);
                            pause
                        }
                        None => {
                            return Err(RegistryError::Unreachable {
                                host: self.name.clone(),
                                why,
                            });
                        }
                    }
                }
            };
            tokio::time::sleep(asked).await;
        }
    }

    /// Sends a request for something that `scope` covers, and answers the registry's challenge if it has one.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        scope: &str,
        dress: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let ours = self.is_ours(url);
        let ask = || {
            self.retried(|http| {
                let request = dress(http.request(method.clone(), url.clone()));
                if ours {
                    self.auth.sign(request, scope)
                } else {
                    request
                }
            })
        };
        let answer = ask().await?;
        // Where the registry sent us may be anybody's: its challenge would have the credentials sent wherever it says.
        if answer.status() == StatusCode::UNAUTHORIZED
            && ours
            && self.is_ours(answer.url())
            && self.auth.answer(self, answer.headers(), scope).await?
        {
            return ask().await;
        }
        Ok(answer)
    }

    /// Sends a request whose body can be sent only once.
    pub(super) async fn once(
        &self,
        method: Method,
        url: &Url,
        scope: &str,
        dress: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, reqwest::Error> {
        let request = dress(self.http.request(method, url.clone()));
        if self.is_ours(url) {
            self.auth.sign(request, scope).send().await
        } else {
            request.send().await
        }
    }

    /// Whether there are credentials that could be shown once more.
    pub(super) fn may_log_in(&self) -> bool {
        self.auth.has_login()
    }

    /// Sends a request for which everything but success is an error.
    pub(super) async fn demand(
        &self,
        method: Method,
        url: &Url,
        scope: &str,
        question: &Question,
        dress: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let answer = self.send(method, url, scope, dress).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(self.refusal(answer, question).await)
    }

    /// What an answer without success means.
    pub(super) async fn refusal(&self, answer: Response, question: &Question) -> RegistryError {
        let status = answer.status();
        let body = match self.body(answer, REFUSAL, &question.what).await {
            Ok(body) => body,
            Err(e) => {
                log::debug!("{e}");
                Vec::new()
            }
        };
        error::refusal(&self.name, status, &body, question, self.auth.has_login())
    }

    /// A whole answer of at most `limit` bytes.
    pub(super) async fn body(
        &self,
        mut answer: Response,
        limit: usize,
        what: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() > limit => {
                    return Err(RegistryError::Wrong {
                        host: self.name.clone(),
                        what: what.to_owned(),
                        why: format!("it is larger than {limit} bytes"),
                    });
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(bytes),
                Err(e) => {
                    return Err(RegistryError::BrokeOff {
                        host: self.name.clone(),
                        why: error::reason(&e),
                    });
                }
            }
        }
    }

    /// A small document as a whole; an answer that breaks off is asked for again.
    pub(super) async fn document(
        &self,
        url: &Url,
        scope: &str,
        question: &Question,
        limit: usize,
        dress: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<(reqwest::header::HeaderMap, Vec<u8>), RegistryError> {
        let mut backoff = Backoff::default();
        loop {
            let answer = self
                .demand(Method::GET, url, scope, question, &dress)
                .await?;
            let headers = answer.headers().clone();
            match self.body(answer, limit, &question.what).await {
                Ok(bytes) => return Ok((headers, bytes)),
                Err(e @ RegistryError::BrokeOff { .. }) => match backoff.next(None) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(e),
                },
                Err(e) => return Err(e),
            }
        }
    }

    /// Asks whether the credentials are taken.
    pub(super) async fn check_login(&self) -> Result<(), RegistryError> {
        let question = Question {
            action: "login",
            subject: self.name.clone(),
            what: format!("the registry {}", self.name),
        };
        let answer = self
            .send(Method::GET, &self.url("v2/")?, "", |request| request)
            .await?;
        if answer.status().is_success() {
            return Ok(());
        }
        match self.refusal(answer, &question).await {
            RegistryError::Denied { said, .. } | RegistryError::LoginNeeded { said, .. } => {
                Err(RegistryError::WrongLogin {
                    host: self.name.clone(),
                    said,
                })
            }
            other => Err(other),
        }
    }

    /// Credentials go to the registry alone, wherever it sends us.
    fn is_ours(&self, url: &Url) -> bool {
        url.scheme() == self.base.scheme()
            && url.host_str() == self.base.host_str()
            && url.port_or_known_default() == self.base.port_or_known_default()
    }
}
