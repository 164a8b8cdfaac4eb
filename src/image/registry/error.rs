//! What a registry can refuse: one line each, in the words that docker's users know.

use std::path::PathBuf;

use reqwest::StatusCode;
use serde::Deserialize;

/// How much of an answer that is no JSON is shown.
const SHOWN: usize = 200;

/// Why a registry could not be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A configuration file or option that cannot be followed.
    #[error("{place}: {why}")]
    Config {
        /// The file or option.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// No connection.
    #[error("cannot reach the registry {host}: {why}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What the network said.
        why: String,
    },
    /// The connection was there and then failed, more often than is tried.
    #[error("the transfer from or to {host} broke off: {why}")]
    BrokeOff {
        /// Host and port.
        host: String,
        /// What happened last.
        why: String,
    },
    /// The registry wants to know who asks.
    #[error(
        "{action} access denied for {what}, it does not exist or may require a login: {said}: run `acetate login {host}`"
    )]
    LoginNeeded {
        /// `pull`, `push` or another infinitive.
        action: &'static str,
        /// The image, repository or registry.
        what: String,
        /// Host and port.
        host: String,
        /// What the registry said.
        said: String,
    },
    /// The registry knows who asks, and says no.
    #[error(
        "{action} access denied for {what}, it does not exist or you may not {action} it: {said}"
    )]
    Denied {
        /// `pull`, `push` or another infinitive.
        action: &'static str,
        /// The image, repository or registry.
        what: String,
        /// What the registry said.
        said: String,
    },
    /// The user or the password is wrong.
    #[error("login to {host} failed: {said}")]
    WrongLogin {
        /// Host and port.
        host: String,
        /// What the registry said.
        said: String,
    },
    /// The registry does not have it.
    #[error("{what} not found: {said}")]
    NotFound {
        /// `manifest for REFERENCE`, `repository NAME`, ...
        what: String,
        /// What the registry said.
        said: String,
    },
    /// Another answer that is no success.
    #[error("{host} answers {status} for {what}: {said}")]
    Status {
        /// Host and port.
        host: String,
        /// The status as a number.
        status: u16,
        /// What was asked for.
        what: String,
        /// What the registry said.
        said: String,
    },
    /// An answer that breaks the protocol.
    #[error("{host} gives a wrong answer for {what}: {why}")]
    Wrong {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A file of credentials or a helper that fails.
    #[error("credentials for {host}: {why}")]
    Credentials {
        /// Host and port.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// A file of certificates or credentials that cannot be read or written.
    #[error("cannot {action} {}: {why}", path.display())]
    File {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
}

/// What was asked for, to say so when it fails.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// `pull`, `push`, `list`.
    pub(super) action: &'static str,
    /// The image or repository as users name it.
    pub(super) subject: String,
    /// What in particular: `manifest for ...`, `blob ...`.
    pub(super) what: String,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<Item>,
    details: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What an answer without success means. `known`: credentials were sent.
pub(super) fn refusal(
    host: &str,
    status: StatusCode,
    body: &[u8],
    question: &Question,
    known: bool,
) -> RegistryError {
    let said = said(status, body);
    let action = question.action;
    let what = question.subject.clone();
    match status {
        StatusCode::UNAUTHORIZED if !known => RegistryError::LoginNeeded {
            action,
            what,
            host: host.to_owned(),
            said,
        },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            RegistryError::Denied { action, what, said }
        }
        StatusCode::NOT_FOUND => RegistryError::NotFound {
            what: question.what.clone(),
            said,
        },
        _ => RegistryError::Status {
            host: host.to_owned(),
            status: status.as_u16(),
            what: question.what.clone(),
            said,
        },
    }
}

/// The registry's own words: `manifest unknown: ...`, on one line and without what could steer a terminal.
pub(super) fn said(status: StatusCode, body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Body>(body) {
        Ok(parsed) if !parsed.errors.is_empty() => parsed
            .errors
            .iter()
            .map(|item| {
                let code = item.code.to_lowercase().replace('_', " ");
                match (code.as_str(), item.message.as_str()) {
                    ("", message) => message.to_owned(),
                    (code, "") => code.to_owned(),
                    (code, message) => format!("{code}: {message}"),
                }
            })
            .collect::<Vec<_>>()
            .join("; "),
        Ok(Body {
            details: Some(details),
            ..
        }) => details,
        _ => String::new(),
    };
    let text = if text.is_empty() {
        status
            .canonical_reason()
            .unwrap_or("no reason")
            .to_lowercase()
    } else {
        text
    };
    text.chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The innermost reason of a failed request: the outer ones repeat the address.
pub(super) fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it does not answer in time".to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            action: "pull",
            subject: "h:5000/a".to_owned(),
            what: "manifest for h:5000/a:1".to_owned(),
        }
    }

    #[test]
    fn refusals_are_told_as_docker_tells_them() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"1"}}]}"#;
        let error = refusal("h:5000", StatusCode::NOT_FOUND, body, &question(), false);
        assert_eq!(
            error.to_string(),
            "manifest for h:5000/a:1 not found: manifest unknown: manifest unknown"
        );
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let error = refusal("h:5000", StatusCode::UNAUTHORIZED, body, &question(), false);
        assert_eq!(
            error.to_string(),
            "pull access denied for h:5000/a, it does not exist or may require a login: unauthorized: authentication required: run `acetate login h:5000`"
        );
        let error = refusal("h", StatusCode::FORBIDDEN, b"<html>\n", &question(), true);
        assert_eq!(
            error.to_string(),
            "pull access denied for h:5000/a, it does not exist or you may not pull it: forbidden"
        );
    }

    #[test]
    fn a_registry_cannot_forge_lines() {
        let body = "{\"errors\":[{\"code\":\"X\",\"message\":\"a\\nb\\u001b[2J\"}]}";
        let text = said(StatusCode::BAD_REQUEST, body.as_bytes());
        assert_eq!(text, "x: a b [2J");
    }
}
