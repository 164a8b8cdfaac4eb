//! A proxy between a client and a registry that counts what passes, and that breaks what it is told to break.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is replaced by one with this status and `Retry-After: 0`.
    Status(u16),
    /// The byte of the body at this offset is another one.
    Flip(u64),
    /// The connection ends after so many bytes of the body.
    Cut(u64),
    /// The body ends after so many bytes, and the head says that this is all.
    Short(u64),
    /// The body has these many bytes more, and the head says so.
    Long(u64),
    /// After so many bytes of the body nothing more comes, until the proxy ends.
    Stall(u64),
    /// The range that was asked for is not sent on, as if the registry knew no ranges.
    NoRange,
    /// A pause of a millisecond after each piece.
    Slow,
}

/// A request that passed.
#[derive(Clone, Debug)]
pub struct Record {
    pub method: String,
    pub path: String,
    /// What `Range` asked for.
    pub range: Option<String>,
    /// Bytes of the body that went to the client.
    pub sent: u64,
    /// Bytes of the body that came from the client.
    pub received: u64,
}

impl Record {
    /// True for a download of a blob.
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }
}

/// Decides by the request and by how many with the same method and path there were before.
type Rule = dyn Fn(&Record, usize) -> Fault + Send + Sync;

struct Shared {
    upstream: SocketAddr,
    rule: Box<Rule>,
    records: Mutex<Vec<Record>>,
    ended: Arc<AtomicBool>,
}

/// A server on loopback with a thread for each connection; it ends when it is dropped.
pub struct Listening {
    pub address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Listening {
    /// `ended` tells what serves that no more is wanted. What a connection fails with is printed, as a client that leaves
    /// is part of what is tested.
    pub fn start(
        listener: TcpListener,
        ended: Arc<AtomicBool>,
        serve: impl Fn(&TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Listening {
        let address = listener.local_addr().unwrap();
        let (serve, over) = (Arc::new(serve), Arc::clone(&ended));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    if let Ok(client) = client {
                        if let Err(e) = serve(&client) {
                            eprintln!("connection: {e}");
                        }
                        client.shutdown(Shutdown::Both).ok();
                    }
                });
            }
        });
        Listening { address, ended }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // The listening thread sees it with the next connection.
        TcpStream::connect(self.address).ok();
    }
}

/// The proxy; it ends when it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    listening: Listening,
}

/// A piece of a body.
const PIECE: usize = 16 << 10;

impl Proxy {
    pub fn start(
        upstream: SocketAddr,
        rule: impl Fn(&Record, usize) -> Fault + Send + Sync + 'static,
    ) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared {
            upstream,
            rule: Box::new(rule),
            records: Mutex::default(),
            ended: Arc::clone(&ended),
        });
        let serving = Arc::clone(&shared);
        let listening = Listening::start(listener, ended, move |client| serve(&serving, client));
        Proxy { shared, listening }
    }

    /// One that only counts.
    pub fn counting(upstream: SocketAddr) -> Proxy {
        Proxy::start(upstream, |_, _| Fault::None)
    }

    pub fn host(&self) -> String {
        self.listening.address.to_string()
    }

    pub fn records(&self) -> Vec<Record> {
        self.shared.records.lock().unwrap().clone()
    }

    /// The downloads of blobs, and the bytes that they brought.
    pub fn blobs(&self) -> (usize, u64) {
        let records = self.records();
        let blobs = records.iter().filter(|r| r.is_blob());
        (blobs.clone().count(), blobs.map(|r| r.sent).sum())
    }
}

/// One request of one connection; the client is told that there is no second one.
fn serve(shared: &Shared, client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(client);
    let Some((first, headers)) = head(&mut reader)? else {
        return Ok(());
    };
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let record = Record {
        range: value(&headers, "range").map(str::to_owned),
        method: method.clone(),
        path: path.clone(),
        sent: 0,
        received: 0,
    };
    let (index, before) = {
        let mut records = shared.records.lock().unwrap();
        let before = records
            .iter()
            .filter(|r| r.method == method && r.path == path)
            .count();
        records.push(record.clone());
        (records.len() - 1, before)
    };
    // It may wait for what the test does meanwhile.
    let fault = (shared.rule)(&record, before);
    let length: u64 = value(&headers, "content-length").map_or(0, |v| v.parse().unwrap());
    if let Fault::Status(status) = fault {
        io::copy(&mut (&mut reader).take(length), &mut io::sink())?;
        return write!(
            &mut &*client,
            "HTTP/1.1 {status} Fault\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let upstream = TcpStream::connect(shared.upstream)?;
    upstream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut request = format!("{first}\r\n");
    for (name, text) in &headers {
        let dropped = name.eq_ignore_ascii_case("connection")
            || fault == Fault::NoRange && name.eq_ignore_ascii_case("range");
        if !dropped {
            request.push_str(&format!("{name}: {text}\r\n"));
        }
    }
    request.push_str("Connection: close\r\n\r\n");
    (&upstream).write_all(request.as_bytes())?;
    if value(&headers, "expect").is_some() {
        (&*client).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut upload = (&mut reader).take(length);
    if let Fault::Cut(limit) = fault
        && length > 0
    {
        io::copy(&mut (&mut upload).take(limit), &mut &upstream)?;
        return Ok(());
    }
    let received = io::copy(&mut upload, &mut &upstream)?;
    shared.records.lock().unwrap()[index].received = received;
    let mut answer = BufReader::new(&upstream);
    let Some((first, headers)) = head(&mut answer)? else {
        return Ok(());
    };
    let length: Option<u64> = value(&headers, "content-length").and_then(|v| v.parse().ok());
    let mut text = format!("{first}\r\n");
    for (name, value) in &headers {
        if name.eq_ignore_ascii_case("connection") {
            continue;
        }
        let value = match (name.eq_ignore_ascii_case("content-length"), fault, length) {
            (true, Fault::Short(limit), Some(length)) => length.min(limit).to_string(),
            (true, Fault::Long(more), Some(length)) => (length + more).to_string(),
            _ => value.clone(),
        };
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("Connection: close\r\n\r\n");
    (&*client).write_all(text.as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    body(shared, &mut answer, client, index, fault)
}

fn body(
    shared: &Shared,
    answer: &mut impl Read,
    mut client: &TcpStream,
    index: usize,
    fault: Fault,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = 0u64;
    loop {
        let mut n = answer.read(&mut piece)?;
        if n == 0 {
            break;
        }
        let end = match fault {
            Fault::Cut(limit) | Fault::Short(limit) | Fault::Stall(limit) => Some(limit),
            _ => None,
        };
        if let Some(end) = end {
            n = n.min(usize::try_from(end - at).unwrap());
        }
        if let Fault::Flip(offset) = fault
            && (at..at + n as u64).contains(&offset)
        {
            piece[usize::try_from(offset - at).unwrap()] ^= 0x10;
        }
        client.write_all(&piece[..n])?;
        at += n as u64;
        shared.records.lock().unwrap()[index].sent = at;
        if fault == Fault::Slow {
            std::thread::sleep(Duration::from_millis(1));
        }
        if Some(at) == end {
            while matches!(fault, Fault::Stall(_)) && !shared.ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
            return Ok(());
        }
    }
    if let Fault::Long(more) = fault {
        client.write_all(&vec![b'x'; usize::try_from(more).unwrap()])?;
    }
    Ok(())
}

/// The first line and the headers of a request or an answer.
pub type Head = (String, Vec<(String, String)>);

pub fn head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let first = line.trim_end().to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            return Ok(Some((first, headers)));
        }
        if let Some((name, value)) = line.trim_end().split_once(':') {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
}

pub fn value<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}
