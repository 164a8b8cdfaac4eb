//! Who one is to a registry: docker's and podman's files, and the helpers that those name.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde_json::{Map, Value};

use super::error::RegistryError;

/// What proves who one is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that is exchanged for others.
    Token(String),
}

// Passwords do not belong into logs.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Login::Password { user, .. } => write!(f, "Login({user:?})"),
            Login::Token(_) => f.write_str("Login(token)"),
        }
    }
}

/// Where credentials are looked for and kept.
#[derive(Debug)]
pub(super) struct Credentials {
    /// Immutable: where to look, the best first.
    files: Vec<PathBuf>,
    /// Immutable: where `login` writes; `None` without a home.
    own: Option<PathBuf>,
}

impl Credentials {
    /// The file that was named, by an option or by `REGISTRY_AUTH_FILE`; or else podman's, then docker's.
    pub(super) fn new(named: Option<PathBuf>) -> Credentials {
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(file) = named.or_else(|| variable("REGISTRY_AUTH_FILE")) {
            return Credentials {
                files: vec![file.clone()],
                own: Some(file),
            };
        }
        let home = variable("HOME");
        let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| {
            let uid = rustix::process::getuid().as_raw();
            PathBuf::from(format!("/run/containers/{uid}"))
        });
        // Without the variable podman's folder is `/run/containers/UID`, with it `.../containers`.
        let podman = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(_) => runtime.join("containers/auth.json"),
            None => runtime.join("auth.json"),
        };
        let docker = variable("DOCKER_CONFIG")
            .or_else(|| Some(home.clone()?.join(".docker")))
            .map(|dir| dir.join("config.json"));
        let persistent = variable("XDG_CONFIG_HOME")
            .or_else(|| Some(home?.join(".config")))
            .map(|dir| dir.join("containers/auth.json"));
        Credentials {
            files: [Some(podman), persistent, docker.clone()]
                .into_iter()
                .flatten()
                .collect(),
            own: docker,
        }
    }

    /// What is known for a registry, or for a repository or a namespace of it, which podman keeps apart.
    pub(super) fn find(&self, key: &str, repository: &str) -> Result<Option<Login>, RegistryError> {
        let mut keys = Vec::new();
        let mut path = repository;
        while !path.is_empty() && !key.contains("://") {
            keys.push(format!("{key}/{path}"));
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        for file in &self.files {
            let bytes = match std::fs::read(file) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed("read", file, e)),
            };
            for name in &keys {
                if names(&bytes, name)
                    && let Some(login) = ask(&bytes, name, file)?
                {
                    return Ok(Some(login));
                }
            }
            if let Some(login) = ask(&bytes, key, file)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Keeps credentials, by the helper that the file names or in the file itself. Says where.
    pub(super) fn store(
        &self,
        key: &str,
        user: &str,
        password: &str,
    ) -> Result<String, RegistryError> {
        let path = self.own_file(key)?;
        let mut file = read_json(&path)?;
        if let Some(helper) = helper_of(&file, key) {
            let request = serde_json::json!({
                "ServerURL": key, "Username": user, "Secret": password,
            });
            run_helper(&helper, "store", request.to_string().as_bytes(), key)?;
            return Ok(format!("the helper docker-credential-{helper}"));
        }
        let auths = file
            .entry("auths")
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(auths) = auths else {
            return Err(not_understood(&path, "auths is no object"));
        };
        let auth = STANDARD.encode(format!("{user}:{password}"));
        auths.insert(key.to_owned(), serde_json::json!({ "auth": auth }));
        write_json(&path, &file)?;
        Ok(path.display().to_string())
    }

    /// Forgets credentials. False where there were none.
    pub(super) fn erase(&self, key: &str) -> Result<bool, RegistryError> {
        let path = self.own_file(key)?;
        let mut file = read_json(&path)?;
        let mut known = false;
        if let Some(helper) = helper_of(&file, key) {
            run_helper(&helper, "erase", key.as_bytes(), key)?;
            known = true;
        }
        if let Some(Value::Object(auths)) = file.get_mut("auths")
            && auths.remove(key).is_some()
        {
            write_json(&path, &file)?;
            known = true;
        }
        Ok(known)
    }

    fn own_file(&self, key: &str) -> Result<PathBuf, RegistryError> {
        let path = self.own.clone().ok_or_else(|| RegistryError::Credentials {
            host: key.to_owned(),
            why: "HOME is not set: name a file by --authfile".to_owned(),
        })?;
        // A link to the file stays one.
        Ok(std::fs::canonicalize(&path).unwrap_or(path))
    }
}

/// Whether a file has an entry of exactly this name, so that no helper is asked for names that nobody gave it.
fn names(bytes: &[u8], name: &str) -> bool {
    let Ok(Value::Object(file)) = serde_json::from_slice(bytes) else {
        return false;
    };
    ["auths", "credHelpers"].iter().any(|part| {
        matches!(file.get(*part), Some(Value::Object(entries)) if entries.contains_key(name))
    })
}

fn ask(bytes: &[u8], name: &str, file: &Path) -> Result<Option<Login>, RegistryError> {
    let wrong = |why: String| RegistryError::Credentials {
        host: name.to_owned(),
        why: format!("{}: {why}", file.display()),
    };
    match docker_credential::get_credential_from_reader(bytes, name) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(Some(Login::Password { user, password }))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Login::Token(token))),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // Helpers that know nobody say so by failing.
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if format!("{stdout}{stderr}").contains("credentials not found") =>
        {
            Ok(None)
        }
        // An empty entry is what docker leaves beside a helper's.
        Err(CredentialRetrievalError::CredentialDecodingError) if !has_auth(bytes, name) => {
            Ok(None)
        }
        Err(e) => Err(wrong(e.to_string().replace('\n', " "))),
    }
}

fn has_auth(bytes: &[u8], name: &str) -> bool {
    let Ok(file) = serde_json::from_slice::<Value>(bytes) else {
        return true;
    };
    file["auths"][name]["auth"]
        .as_str()
        .is_some_and(|auth| !auth.is_empty())
}

fn read_json(path: &Path) -> Result<Map<String, Value>, RegistryError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(failed("read", path, e)),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(file)) => Ok(file),
        Ok(_) => Err(not_understood(path, "it is no JSON object")),
        Err(e) => Err(not_understood(path, &e.to_string())),
    }
}

/// Replaces the file at once, readable for its owner alone.
fn write_json(path: &Path, file: &Map<String, Value>) -> Result<(), RegistryError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o700)))
            .map_err(|e| failed("create", parent, e))?;
    }
    let mut text =
        serde_json::to_string_pretty(file).map_err(|e| failed("write", path, e.into()))?;
    text.push('\n');
    // Such a file is made with the mode 0600.
    let write = || -> std::io::Result<()> {
        let mut new = tempfile::NamedTempFile::new_in(parent)?;
        new.write_all(text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(path).map_err(|e| e.error)?;
        std::fs::File::open(parent)?.sync_all()
    };
    write().map_err(|e| failed("write", path, e))
}

fn helper_of(file: &Map<String, Value>, key: &str) -> Option<String> {
    let named = file.get("credHelpers").and_then(|helpers| helpers.get(key));
    named
        .or_else(|| file.get("credsStore"))
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

fn run_helper(helper: &str, action: &str, input: &[u8], key: &str) -> Result<(), RegistryError> {
    let program = format!("docker-credential-{helper}");
    let wrong = |why: String| RegistryError::Credentials {
        host: key.to_owned(),
        why: format!("{program} {action}: {why}"),
    };
    // A name, not a path out of the search path.
    if helper.contains('/') {
        return Err(wrong("invalid name".to_owned()));
    }
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| wrong(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // One that wants to know no more has ended, and says how by its status.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.map_err(|e| wrong(e.to_string()))?,
        }
    }
    let output = child.wait_with_output().map_err(|e| wrong(e.to_string()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if output.status.success() || said.contains("credentials not found") {
        return Ok(());
    }
    Err(wrong(said))
}

fn failed(action: &'static str, path: &Path, error: std::io::Error) -> RegistryError {
    RegistryError::File {
        action,
        path: path.to_owned(),
        why: error.to_string(),
    }
}

fn not_understood(path: &Path, why: &str) -> RegistryError {
    RegistryError::File {
        action: "understand",
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(path: &Path) -> Credentials {
        Credentials::new(Some(path.to_owned()))
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn what_is_stored_is_found_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.json");
        let credentials = in_file(&path);
        assert_eq!(credentials.find("h:5000", "a/b").unwrap(), None);
        credentials.store("h:5000", "me", "p:w").unwrap();
        assert_eq!(
            credentials.find("h:5000", "a/b").unwrap(),
            password("me", "p:w")
        );
        assert_eq!(credentials.find("h:5001", "a/b").unwrap(), None);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        // What else the file holds is docker's, and stays.
        std::fs::write(
            &path,
            r#"{"HttpHeaders":{"a":"b"},"auths":{"other":{"auth":"eDp5"}}}"#,
        )
        .unwrap();
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let linked = in_file(&link);
        linked.store("h:5000", "me", "pw").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(credentials.find("other", "").unwrap(), password("x", "y"));
        assert!(linked.erase("h:5000").unwrap());
        assert!(!linked.erase("h:5000").unwrap());
        let left: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            left,
            serde_json::json!({"HttpHeaders":{"a":"b"},"auths":{"other":{"auth":"eDp5"}}})
        );
    }

    #[test]
    fn podman_keeps_namespaces_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(
            &path,
            r#"{"auths":{"h":{"auth":"YTpi"},"h/team":{"auth":"Yzpk"},"empty":{}}}"#,
        )
        .unwrap();
        let credentials = in_file(&path);
        assert_eq!(
            credentials.find("h", "team/app").unwrap(),
            password("c", "d")
        );
        assert_eq!(credentials.find("h", "app").unwrap(), password("a", "b"));
        assert_eq!(credentials.find("empty", "app").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_said_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{").unwrap();
        let credentials = in_file(&path);
        assert!(credentials.find("h", "a").is_err());
        assert!(credentials.store("h", "a", "b").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"{");
    }
}
