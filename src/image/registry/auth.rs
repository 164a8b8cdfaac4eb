//! Challenges of a registry, and the tokens that answer them.

use std::collections::HashMap;

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;

use super::client::Client;
use super::credentials::Login;
use super::error::{self, RegistryError};

/// The largest answer that a token may come in.
const TOKEN_LIMIT: usize = 1 << 20;

/// What is sent along to be let in.
#[derive(Debug, Default)]
pub(super) struct Auth {
    /// Immutable.
    login: Option<Login>,
    /// Leaf lock, never held while waiting.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The registry takes user and password themselves.
    basic: bool,
    /// Tokens by scope.
    tokens: HashMap<String, String>,
}

/// A way in that a registry offers.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Auth {
    pub(super) fn new(login: Option<Login>) -> Auth {
        Auth {
            login,
            state: Mutex::default(),
        }
    }

    /// Whether there is anybody to be.
    pub(super) fn has_login(&self) -> bool {
        self.login.is_some()
    }

    /// Sends user and password from now on, if these headers ask for nothing else.
    pub(super) fn prefer_basic(&self, headers: &HeaderMap) {
        let wanted = challenges(headers);
        if wanted.first() == Some(&Challenge::Basic) {
            self.state.lock().basic = true;
        }
    }

    /// Adds what earlier challenges asked for.
    pub(super) fn sign(&self, request: RequestBuilder, scope: &str) -> RequestBuilder {
        let state = self.state.lock();
        if let Some(token) = state.tokens.get(scope) {
            return request.bearer_auth(token);
        }
        match &self.login {
            Some(Login::Password { user, password }) if state.basic => {
                request.basic_auth(user, Some(password))
            }
            _ => request,
        }
    }

    /// Gets what a challenge asks for. False where there is nothing to answer it with.
    pub(super) async fn answer(
        &self,
        client: &Client,
        headers: &HeaderMap,
        scope: &str,
    ) -> Result<bool, RegistryError> {
        for challenge in challenges(headers) {
            match challenge {
                Challenge::Basic => {
                    if matches!(self.login, Some(Login::Password { .. })) {
                        self.state.lock().basic = true;
                        return Ok(true);
                    }
                }
                Challenge::Bearer {
                    realm,
                    service,
                    scope: asked,
                } => {
                    let wanted = if scope.is_empty() {
                        asked.unwrap_or_default()
                    } else {
                        scope.to_owned()
                    };
                    let token = self
                        .token(client, &realm, service.as_deref(), &wanted)
                        .await?;
                    self.state.lock().tokens.insert(scope.to_owned(), token);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn token(
        &self,
        client: &Client,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<String, RegistryError> {
        let wrong = |why: String| RegistryError::Wrong {
            host: client.name().to_owned(),
            what: "a token".to_owned(),
            why,
        };
        let mut url = Url::parse(realm).map_err(|e| wrong(format!("the realm {realm:?}: {e}")))?;
        if client.base().scheme() == "https" && url.scheme() != "https" {
            return Err(wrong(format!(
                "it wants the credentials to be sent in the open, to {realm}"
            )));
        }
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        if let Some(service) = service {
            pairs.push(("service", service));
        }
        // A scope of several parts is sent in several fields.
        pairs.extend(
            scope
                .split(' ')
                .filter(|s| !s.is_empty())
                .map(|s| ("scope", s)),
        );
        let answer = match &self.login {
            Some(Login::Token(token)) => {
                let mut form: Vec<(&str, &str)> = vec![
                    ("grant_type", "refresh_token"),
                    ("client_id", "acetate"),
                    ("refresh_token", token),
                ];
                if let Some(service) = service {
                    form.push(("service", service));
                }
                form.push(("scope", scope));
                let mut encoded = Url::parse("x:").map_err(|e| wrong(e.to_string()))?;
                encoded.query_pairs_mut().extend_pairs(form);
                let body = encoded.query().unwrap_or_default().to_owned();
                client
                    .retried(|http| {
                        http.post(url.clone())
                            .header("Content-Type", "application/x-www-form-urlencoded")
                            .body(body.clone())
                    })
                    .await?
            }
            login => {
                if let Some(Login::Password { user, .. }) = login {
                    pairs.push(("account", user));
                }
                url.query_pairs_mut().extend_pairs(pairs);
                client
                    .retried(|http| {
                        let request = http.get(url.clone());
                        match login {
                            Some(Login::Password { user, password }) => {
                                request.basic_auth(user, Some(password))
                            }
                            _ => request,
                        }
                    })
                    .await?
            }
        };
        let status = answer.status();
        let bytes = client.body(answer, TOKEN_LIMIT, "a token").await?;
        if !status.is_success() {
            return Err(RegistryError::WrongLogin {
                host: client.name().to_owned(),
                said: error::said(status, &bytes),
            });
        }
        let answer: TokenAnswer =
            serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or_else(|| wrong("it has none".to_owned()))
    }
}

/// The challenges that can be answered, those with tokens first.
fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else {
            continue;
        };
        // One that cannot be read does not take away those before it.
        for challenge in http_auth::parser::ChallengeParser::new(text).map_while(Result::ok) {
            let parameter = |name: &str| {
                challenge
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                found.push(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                let bearer = Challenge::Bearer {
                    realm,
                    service: parameter("service"),
                    scope: parameter("scope"),
                };
                found.insert(0, bearer);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
            }
            challenges(&headers)
        };
        assert_eq!(of(&["Basic realm=\"x\""]), [Challenge::Basic]);
        let bearer = r#"Bearer realm="https://auth.example/token",service="r",scope="repository:a/b:pull,push""#;
        assert_eq!(
            of(&["Basic realm=x", bearer]),
            [
                Challenge::Bearer {
                    realm: "https://auth.example/token".into(),
                    service: Some("r".into()),
                    scope: Some("repository:a/b:pull,push".into()),
                },
                Challenge::Basic,
            ]
        );
        assert_eq!(of(&["Negotiate abc", "Bearer service=\"r\""]), []);
        assert_eq!(of(&["=,=\"?!"]), []);
    }
}
