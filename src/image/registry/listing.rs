//! What a registry has: repositories, and the tags of one.

use reqwest::{Url, header};
use serde::Deserialize;

use super::Registry;
use super::client::Client;
use super::error::{Question, RegistryError};

/// How many names are asked for at once.
const PAGE: u32 = 200;
/// Pages after which a registry is taken to go round in circles.
const MAX_PAGES: usize = 100_000;
/// The largest page.
const LIMIT: usize = 8 << 20;

#[derive(Deserialize)]
struct Page {
    /// Registries without any give `null`.
    #[serde(alias = "repositories")]
    tags: Option<Vec<String>>,
}

impl Registry {
    /// The repositories of a registry, in its order.
    pub fn catalog(&self, registry: &str) -> Result<Vec<String>, RegistryError> {
        let client = self.connect_to(registry, "")?;
        let question = Question {
            action: "list",
            subject: registry.to_owned(),
            what: format!("the catalog of {registry}"),
        };
        self.wait(pages(
            &client,
            "v2/_catalog",
            "registry:catalog:*",
            &question,
        ))
    }

    /// The tags of a repository, in the registry's order.
    pub fn tags(&self, registry: &str, repository: &str) -> Result<Vec<String>, RegistryError> {
        let client = self.connect_to(registry, repository)?;
        let question = Question {
            action: "pull",
            subject: format!("{registry}/{repository}"),
            what: format!("repository {registry}/{repository}"),
        };
        let path = format!("v2/{repository}/tags/list");
        let scope = format!("repository:{repository}:pull");
        self.wait(pages(&client, &path, &scope, &question))
    }
}

async fn pages(
    client: &Client,
    path: &str,
    scope: &str,
    question: &Question,
) -> Result<Vec<String>, RegistryError> {
    let wrong = |why: String| RegistryError::Wrong {
        host: client.name().to_owned(),
        what: question.what.clone(),
        why,
    };
    let mut url = client.url(path)?;
    url.query_pairs_mut().append_pair("n", &PAGE.to_string());
    let mut names = Vec::new();
    for _ in 0..MAX_PAGES {
        let (headers, bytes) = client
            .document(&url, scope, question, LIMIT, |request| request)
            .await?;
        let page: Page = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        names.extend(page.tags.unwrap_or_default());
        match next(client, &url, &headers)? {
            Some(following) => url = following,
            None => return Ok(names),
        }
    }
    Err(wrong("it does not end".to_owned()))
}

/// The next page: `Link: </v2/_catalog?last=x&n=200>; rel="next"`.
fn next(
    client: &Client,
    url: &Url,
    headers: &header::HeaderMap,
) -> Result<Option<Url>, RegistryError> {
    let Some(link) = headers.get(header::LINK).and_then(|v| v.to_str().ok()) else {
        return Ok(None);
    };
    let Some(target) = next_target(link) else {
        return Ok(None);
    };
    client.resolve(url, target).map(Some)
}

fn next_target(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters
        .split(';')
        .any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
    is_next.then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_next_page() {
        let link = r#"</v2/_catalog?last=x&n=2>; rel="next""#;
        assert_eq!(next_target(link), Some("/v2/_catalog?last=x&n=2"));
        assert_eq!(next_target(r#"</a>; rel="prev""#), None);
        assert_eq!(next_target("nonsense"), None);
    }

    #[test]
    fn pages_of_both_kinds_are_read() {
        let names = |text: &str| serde_json::from_str::<Page>(text).unwrap().tags;
        assert_eq!(names(r#"{"repositories":["a"]}"#), Some(vec!["a".into()]));
        assert_eq!(
            names(r#"{"name":"x","tags":["1"]}"#),
            Some(vec!["1".into()])
        );
        assert_eq!(names(r#"{"name":"x","tags":null}"#), None);
    }
}
