//! Names of images: `[registry[:port]/]path[:tag][@digest]`, read as docker reads them.

use oci_spec::image::{Digest, DigestAlgorithm};

use super::error::ImageError;

/// The registry that is meant when none is named.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace of that registry's own images.
const DEFAULT_NAMESPACE: &str = "library";
/// The tag that is meant when neither tag nor digest is named.
const DEFAULT_TAG: &str = "latest";
/// The longest repository name, registry included.
const MAX_NAME: usize = 255;

/// A reference with nothing left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads a reference and fills in what is left out.
    pub fn parse(text: &str) -> Result<Reference, ImageError> {
        let invalid = |why| ImageError::InvalidReference {
            reference: text.to_owned(),
            why,
        };
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid("64 hexadecimal digits are an id, not a name"));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let known = Digest::try_from(digest).is_ok_and(|digest| {
                    use DigestAlgorithm::{Sha256, Sha384, Sha512};
                    matches!(digest.algorithm(), Sha256 | Sha384 | Sha512)
                });
                if !known {
                    return Err(invalid("what follows '@' is no digest"));
                }
                (rest, Some(digest.to_owned()))
            }
        };
        // A colon before the last slash belongs to the registry's port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path_start..].split_once(':') {
            None => (rest, None),
            Some((last, tag)) => (&rest[..path_start + last.len()], Some(tag)),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(invalid)?;
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first.to_owned(), rest.to_owned()),
            _ => (DEFAULT_REGISTRY.to_owned(), name.to_owned()),
        };
        check_registry(&registry).map_err(invalid)?;
        check_repository(&repository).map_err(invalid)?;
        let registry = if registry == "index.docker.io" {
            DEFAULT_REGISTRY.to_owned()
        } else {
            registry
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("{DEFAULT_NAMESPACE}/{repository}")
        } else {
            repository
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(invalid("the name is longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Reference {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// The registry's host and port.
    pub fn registry(&self) -> &str {
        &self.registry
    }
    /// The path in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }
    /// The tag; `None` only beside a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
    /// The digest.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
    /// Registry and path, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
    /// The name as people write it: without the default registry and namespace.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        self.repository
            .strip_prefix("library/")
            .filter(|rest| !rest.contains('/'))
            .unwrap_or(&self.repository)
            .to_owned()
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// The first component names a registry when it could be no path component of the default one.
fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const WHY: &str = "the registry is no host name";
    let (host, port) = match registry.strip_prefix('[') {
        // An IPv6 address.
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(WHY)?;
            if address.is_empty()
                || !address
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
            {
                return Err(WHY);
            }
            match after {
                "" => return Ok(()),
                after => ("x", Some(after.strip_prefix(':').ok_or(WHY)?)),
            }
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    if port.is_some_and(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return Err("the registry's port is no number");
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.split('.').all(label) {
        Ok(())
    } else {
        Err(WHY)
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.is_empty() {
        return Err("the name is empty");
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    if repository.split('/').all(is_component) {
        Ok(())
    } else {
        Err(
            "a name has lower-case letters, digits, and single separators '.', '_', '__' or '-' between them",
        )
    }
}

/// Letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let mut separator = String::new();
    let mut begun = false;
    for c in component.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                let dashes = separator.bytes().all(|b| b == b'-');
                if !(dashes || matches!(separator.as_str(), "." | "_" | "__"))
                    || (!begun && !separator.is_empty())
                {
                    return false;
                }
                separator.clear();
                begun = true;
            }
            '.' | '_' | '-' => separator.push(c),
            _ => return false,
        }
    }
    begun && separator.is_empty()
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| word(b) || matches!(b, b'.' | b'-');
    if !tag.is_empty() && tag.len() <= 128 && word(tag.as_bytes()[0]) && tag.bytes().all(rest) {
        Ok(())
    } else {
        Err(
            "a tag has up to 128 letters, digits, '_', '.' and '-', and does not begin with '.' or '-'",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let full = |text| Reference::parse(text).map(|r| r.to_string());
        assert_eq!(full("debian").unwrap(), "docker.io/library/debian:latest");
        assert_eq!(full("debian:12").unwrap(), "docker.io/library/debian:12");
        assert_eq!(full("a/b").unwrap(), "docker.io/a/b:latest");
        assert_eq!(full("localhost/a:1").unwrap(), "localhost/a:1");
        assert_eq!(full("h:5000/a").unwrap(), "h:5000/a:latest");
        assert_eq!(full("quay.io/a/b:c").unwrap(), "quay.io/a/b:c");
        assert_eq!(
            full("index.docker.io/debian").unwrap(),
            "docker.io/library/debian:latest"
        );
        assert_eq!(full("[::1]:5000/a").unwrap(), "[::1]:5000/a:latest");
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(
            full(&format!("debian@{digest}")).unwrap(),
            format!("docker.io/library/debian@{digest}")
        );
        assert_eq!(
            Reference::parse("debian").unwrap().familiar_name(),
            "debian"
        );
        assert_eq!(Reference::parse("a/b").unwrap().familiar_name(), "a/b");
    }

    #[test]
    fn invalid_references_are_refused() {
        for text in [
            "",
            "Debian",
            "a/B",
            "a:",
            "a:-x",
            "a::b",
            "a@b",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "h:x/a",
            "../a",
            &"a".repeat(300),
            &"a".repeat(64),
            "a:b/c d",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
