//! podman's commands, one after another, as its manual pages name them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::program;
use crate::engine::Engine;

const MULTI_STAGE: &str = r#"FROM localhost/base:1 AS maker
RUN mkdir /made && echo made >/made/file && ln /made/file /made/link && chmod 4711 /made/file
FROM localhost/base:1
COPY --from=maker /made /made
RUN rm -r /tree/gone && mv /tree/moved /tree/renamed
"#;

/// Debian's registry on loopback.
struct Registry {
    server: Child,
    port: u16,
}

fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

impl Registry {
    fn start(dir: &Path) -> Registry {
        let port = free_port();
        let data = dir.join("registry");
        fs::create_dir(&data).unwrap();
        let configuration = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            data.display()
        );
        fs::write(&configuration, text).unwrap();
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Registry { server, port };
        get(port, "/v2/");
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(e) = self.server.kill().and_then(|()| self.server.wait()) {
            eprintln!("the registry: {e}");
        }
    }
}

/// Fetches a page over loopback, as soon as somebody serves it.
#[track_caller]
fn get(port: u16, path: &str) -> String {
    let begin = Instant::now();
    loop {
        let fetch = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        match fetch() {
            Ok(text) if text.contains(" 200 ") => {
                let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                return body.to_owned();
            }
            other => assert!(
                begin.elapsed() < Duration::from_secs(20),
                "127.0.0.1:{port}{path}: {other:?}"
            ),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the commands printed, step by step. `mapped`: the option that gives a container ids of its own.
pub(crate) fn all(engine: &Engine, base: &Path, mapped: &[&str]) -> Vec<(String, String)> {
    let mut said = Vec::new();
    let mut step = |name: &str, text: String| said.push((name.to_owned(), text));
    let inspect =
        |what: &str, format: &str| engine.podman(&["inspect", "--format", format], &[what]);
    let home = |name: &str| engine.home().join(name).display().to_string();
    engine.podman(
        &["import", "-q"],
        &[&base.display().to_string(), "localhost/base:1"],
    );

    // A page is made, committed without a name, named twice, served, pushed, pulled and served again.
    let registry = Registry::start(engine.home());
    let place = format!("127.0.0.1:{}/pages/page", registry.port);
    let make = "mkdir -p /data/html && echo a page >/data/html/index.html";
    engine.podman(
        &["run", "--name", "maker"],
        &["localhost/base:1", "sh", "-c", make],
    );
    let unnamed = engine.podman(&["commit", "-q"], &["maker"]);
    let unnamed = unnamed.trim();
    step(
        "unnamed",
        engine.podman(
            &["images", "--filter", "dangling=true", "--format"],
            &["{{.Repository}} {{.Tag}}"],
        ),
    );
    for tag in ["one", "two"] {
        engine.podman(&["tag"], &[unnamed, &format!("{place}:{tag}")]);
    }
    step("command", inspect(unnamed, "{{.Config.Cmd}}"));
    let page_port = free_port();
    let serve =
        format!(r#"CMD ["/bin/httpd","-f","-p","127.0.0.1:{page_port}","-h","/data/html"]"#);
    engine.podman(
        &[
            "commit",
            "-q",
            "-p",
            "-f",
            "docker",
            "-a",
            "an author",
            "-m",
            "a message",
            "-c",
            &serve,
        ],
        &["maker", &format!("{place}:served")],
    );
    step(
        "described",
        inspect(&format!("{place}:served"), "{{.Author}}, {{.Comment}}"),
    );
    let run_served = || {
        let options = ["run", "-d", "--name", "server", "--network", "host"];
        engine.podman(&options, &[&format!("{place}:served")]);
        get(page_port, "/")
    };
    step("page", run_served());
    let in_use = engine.try_podman(&["rmi"], &[&format!("{place}:served")]);
    step("removed while in use", in_use.success().to_string());
    for tag in ["one", "two", "served"] {
        engine.podman(
            &["push", "-q", "--tls-verify=false"],
            &[&format!("{place}:{tag}")],
        );
    }
    step("catalog", get(registry.port, "/v2/_catalog"));
    engine.remove(&["server", "maker"]);
    engine.podman(&["rmi", "-a", "-f"], &[]);
    engine.podman(
        &["pull", "-q", "--tls-verify=false"],
        &[&format!("{place}:served")],
    );
    step("page pulled", run_served());
    engine.remove(&["server"]);

    // A port of the host that leads into a container's own network.
    if has_tunnels(engine) {
        let port = free_port();
        let publish = format!("--publish=127.0.0.1:{port}:80");
        engine.podman(
            &[
                "run",
                "-d",
                "--name",
                "port",
                "--network",
                "slirp4netns",
                &publish,
            ],
            &[
                &format!("{place}:served"),
                "httpd",
                "-f",
                "-p",
                "80",
                "-h",
                "/data/html",
            ],
        );
        step("page by a mapped port", get(port, "/"));
        engine.remove(&["port"]);
    } else {
        eprintln!("SKIPPED: mapped ports need slirp4netns and the right to use /dev/net/tun");
    }

    // In and out as archives.
    for format in ["docker-archive", "oci-archive"] {
        let archive = home(format);
        let image = format!("{place}:served");
        engine.podman(
            &["save", "-q", "--format", format, "-o", &archive],
            &[&image],
        );
        engine.podman(&["rmi", "-f"], &[&image]);
        engine.podman(&["load", "-q", "-i"], &[&archive]);
        step(
            format,
            engine.podman(&["run", "--rm"], &[&image, "cat", "/data/html/index.html"]),
        );
    }
    engine.podman(
        &["import", "-q"],
        &[&base.display().to_string(), "localhost/base:1"],
    );

    // A container that runs.
    let script =
        "echo begun; echo kept >/data/kept; mv /tree/moved /tree/elsewhere; exec sleep 1000";
    engine.podman(
        &["run", "-d", "--name", "long", "-v", "volume:/volume"],
        &["localhost/base:1", "sh", "-c", script],
    );
    step(
        "exec",
        engine.exec(&[
            "long",
            "sh",
            "-c",
            "cat /data/kept; echo seen >/volume/file",
        ]),
    );
    step("top", engine.podman(&["top"], &["long", "pid", "args"]));
    step("logs", engine.podman(&["logs"], &["long"]));
    engine.podman(&["restart", "-t", "0"], &["long"]);
    step(
        "restarted",
        engine.exec(&[
            "long",
            "sh",
            "-c",
            "cat /data/kept /tree/elsewhere/sub/file",
        ]),
    );
    engine.podman(&["cp"], &[&base.display().to_string(), "long:/data/copied"]);
    step("copied", engine.exec(&["long", "md5sum", "/data/copied"]));
    let exported = home("exported.tar");
    engine.podman(&["export", "-o", &exported], &["long"]);
    engine.podman(&["import", "-q"], &[&exported, "localhost/flat:1"]);
    step(
        "exported",
        engine.podman(
            &["run", "--rm", "-v", "volume:/volume"],
            &[
                "localhost/flat:1",
                "cat",
                "/data/kept",
                "/tree/elsewhere/sub/file",
                "/volume/file",
            ],
        ),
    );
    engine.podman(
        &["run", "-d", "--name", "short"],
        &[
            "localhost/base:1",
            "sh",
            "-c",
            "sleep 1; echo ended; exit 3",
        ],
    );
    let attached = engine.try_podman(&["attach"], &["short"]);
    step("attach", format!("{:?} {}", attached.code(), attached.text));

    // Ids of its own, and a root that cannot be written.
    let script = "echo more >>/etc/appended && echo new >/data/new && chown 3:4 /data/file && stat -c '%n %u:%g' /etc/appended /data/new /data/file /data/suid /tree";
    let mut options = vec!["run", "--rm"];
    options.extend_from_slice(mapped);
    step(
        "mapped",
        engine.podman(&options, &["localhost/base:1", "sh", "-c", script]),
    );
    let script = "exec 2>&1; echo x >/data/new; echo x >>/data/file; cat /data/file; echo x >/tmp/new && cat /tmp/new";
    step(
        "read-only",
        engine.podman(
            &["run", "--rm", "--read-only"],
            &["localhost/base:1", "sh", "-c", script],
        ),
    );

    let context = engine.home().join("stages");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Containerfile"), MULTI_STAGE).unwrap();
    engine.podman(
        &["build", "-q", "-t", "localhost/stages:1"],
        &[&context.display().to_string()],
    );
    let script = "stat -c '%n %A %h' /made/*; ls /tree";
    step(
        "stages",
        engine.podman(
            &["run", "--rm"],
            &["localhost/stages:1", "sh", "-c", script],
        ),
    );

    // buildah, step by step.
    engine.buildah(&["from", "--name", "working", "localhost/base:1"]);
    let run = |script: &str| {
        engine.buildah(&[
            "run",
            "--isolation",
            "chroot",
            "working",
            "sh",
            "-c",
            script,
        ])
    };
    run(
        "rm -r /tree/gone; mv /tree/moved /tree/renamed; echo more >>/data/file; ln /data/file /data/link",
    );
    engine.buildah(&[
        "copy",
        "working",
        &format!("{}/stages/Containerfile", engine.home().display()),
        "/data/",
    ]);
    step(
        "buildah",
        run("cat /data/file; ls /data /tree /tree/renamed/sub"),
    );
    engine.buildah(&["commit", "-q", "--rm", "working", "localhost/working:1"]);
    let script = "stat -c '%n %A %u:%g %h' /data/* /tree/*; cat /data/link /tree/renamed/sub/file";
    step(
        "built by buildah",
        engine.podman(
            &["run", "--rm"],
            &["localhost/working:1", "sh", "-c", script],
        ),
    );

    // The machine is switched off, and on again.
    engine.exec(&["long", "sh", "-c", "echo written >>/data/kept; sync"]);
    engine.reboot();
    engine.podman(&["start"], &["long"]);
    step(
        "after a reboot",
        engine.exec(&[
            "long",
            "sh",
            "-c",
            "cat /tree/elsewhere/sub/file; ls /data; cat /volume/file",
        ]),
    );
    engine.remove(&["long", "short"]);
    engine.podman(&["system", "prune", "-a", "-f", "--volumes"], &[]);
    step("pruned", engine.podman(&["images", "-q"], &[]));
    drop(registry);
    said
}

/// What a network of the container's own needs.
fn has_tunnels(engine: &Engine) -> bool {
    program::find("slirp4netns").is_ok() && engine.may_use(Path::new("/dev/net/tun"))
}

/// What the commands need beside podman.
pub(crate) fn needs() -> Result<(), String> {
    program::find("docker-registry").and(program::find("buildah"))?;
    Ok(())
}
