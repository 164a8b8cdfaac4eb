//! Digests: computed while bytes pass by, compared with what was promised.

use std::io::{self, Read};

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::Digest as _;

use super::error::ImageError;

/// A running digest.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    /// SHA-256, the only one in wide use.
    Sha256(Box<sha2::Sha256>),
    /// SHA-512.
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// SHA-256.
    pub(crate) fn sha256() -> Hasher {
        Hasher::Sha256(Box::default())
    }
    /// The algorithm that can check `digest`.
    pub(crate) fn for_digest(digest: &Digest) -> Result<Hasher, ImageError> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Hasher::sha256()),
            DigestAlgorithm::Sha512 => Ok(Hasher::Sha512(Box::default())),
            _ => Err(ImageError::UnsupportedDigest {
                digest: digest.to_string(),
            }),
        }
    }
    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }
    /// The digest of all bytes added, written as digests are: `sha256:` and hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        match self {
            Hasher::Sha256(h) => format!("sha256:{}", hex(&h.finalize())),
            Hasher::Sha512(h) => format!("sha512:{}", hex(&h.finalize())),
        }
    }
}

/// The SHA-256 digest of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// Parses a digest from a document; `what` names the document in the error.
pub(crate) fn parse(text: &str, what: &str) -> Result<Digest, ImageError> {
    let digest = Digest::try_from(text).map_err(|e| ImageError::Inconsistent {
        what: what.to_owned(),
        why: format!("{text:?} is no digest: {e}"),
    })?;
    Hasher::for_digest(&digest)?;
    Ok(digest)
}

/// Compares the digest of `bytes` with the promised one; `what` names them in the error.
pub(crate) fn check(bytes: &[u8], expected: &Digest, what: String) -> Result<(), ImageError> {
    let mut hasher = Hasher::for_digest(expected)?;
    hasher.update(bytes);
    let got = hasher.finish();
    if got == expected.as_ref() {
        return Ok(());
    }
    Err(ImageError::digest(what, expected, got))
}

/// A reader that hashes and counts what passes.
#[derive(Debug)]
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Option<Hasher>,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Hashes with `hasher`; counts only, when there is none.
    pub(crate) fn new(inner: R, hasher: Option<Hasher>) -> HashingReader<R> {
        HashingReader {
            inner,
            hasher,
            count: 0,
        }
    }
    /// Bytes that have passed.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
    /// Reads to the end and gives the digest of everything.
    pub(crate) fn drain(mut self) -> io::Result<Option<String>> {
        if self.hasher.is_some() {
            io::copy(&mut self, &mut io::sink())?;
        }
        Ok(self.hasher.map(Hasher::finish))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        self.count += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(
            sha256(b"abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let reader = HashingReader::new(&b"abc"[..], Some(Hasher::sha256()));
        assert_eq!(reader.drain().unwrap().unwrap(), sha256(b"abc"));
    }

    #[test]
    fn a_digest_that_cannot_be_checked_is_refused() {
        assert!(parse("md5:abcd", "t").is_err());
        assert!(parse("sha256:abcd", "t").is_err());
        assert!(parse("sha256:../../etc/passwd", "t").is_err());
    }
}
