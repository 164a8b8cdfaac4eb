//! The story of docker's manuals, from a first page to the same page on another machine, by this program alone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::program::find;
use crate::require;
use crate::rig::{Rig, able};

/// A registry of Debian's on a port of this machine.
struct Registry {
    child: Child,
    address: String,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Registry {
    fn start(rig: &Rig) -> Registry {
        let address = format!("127.0.0.1:{}", free_port());
        let config = rig.scratch.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            rig.scratch.dir("registry").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(find("docker-registry").unwrap())
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Registry { child, address };
        rig.until("the registry answers", || {
            TcpStream::connect(&registry.address).is_ok()
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Fetches a page; empty until somebody answers.
fn page(port: u16) -> String {
    let fetched = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = fetched().unwrap_or_default();
    text.split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default()
}

#[test]
fn a_page_is_made_committed_pushed_and_run_again() {
    require!(able());
    require!(find("docker-registry").map(drop));
    let rig = Rig::new("story");
    let registry = Registry::start(&rig);
    let script = "mkdir -p /data/html; echo '<p>hello</p>' > /data/html/index.html";
    rig.must(&["run", "--name", "maker", "bb", "sh", "-c", script]);
    assert!(
        rig.must(&["diff", "maker"])
            .contains("A /data/html/index.html")
    );
    // Without a name, then with two.
    let id = rig.must(&["commit", "maker"]).trim().to_owned();
    for tag in ["web:1", "web:latest"] {
        rig.must(&["image", "tag", &id, tag]);
    }
    let inspected = rig.must(&["image", "inspect", "web:1"]);
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert!(inspected.to_string().contains("/bin/sh"), "{inspected}");
    let port = free_port();
    let change =
        format!("CMD [\"/bin/httpd\",\"-f\",\"-p\",\"127.0.0.1:{port}\",\"-h\",\"/data/html\"]");
    let name = |tag: &str| format!("{}/web:{tag}", registry.address);
    rig.must(&[
        "commit",
        "-a",
        "me",
        "-m",
        "a page",
        "-c",
        &change,
        "maker",
        &name("1"),
    ]);
    rig.must(&["image", "tag", &name("1"), &name("2")]);
    let serve = |image: &str| {
        rig.must(&["run", "-d", "--name", "server", "--net", "host", image]);
        rig.until("the page is served", || page(port) == "<p>hello</p>\n");
        rig.must(&["rm", "-f", "server"]);
    };
    serve(&name("1"));
    rig.must(&["push", &name("1")]);
    let second = rig.must(&["push", &name("2")]);
    assert!(second.contains("already exists"), "{second}");
    let listed = rig.must(&["registry", "catalog", &registry.address]);
    assert!(listed.contains("web"), "{listed}");
    let digest = |image: &str| -> String {
        let text = rig.must(&["image", "inspect", image]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value.as_array().map_or(&value, |all| &all[0])["Id"].to_string()
    };
    let before = digest(&name("1"));
    assert!(
        rig.fails(1, &["image", "rm", "bb"])
            .contains("container maker")
    );
    rig.must(&["rm", "maker"]);
    rig.must(&["image", "prune", "--all"]);
    assert!(
        rig.fails(125, &["run", "--rm", "--pull", "never", &name("1")])
            .contains("web")
    );
    // Pulled, as it is missing.
    serve(&name("1"));
    assert_eq!(digest(&name("1")), before);
    rig.must(&["run", "--rm", &name("2"), "true"]);
    assert_eq!(digest(&name("2")), before);
    rig.nothing_is_left();
}
