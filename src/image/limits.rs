//! How large an image may be: every byte of it may come from an adversary.

use std::time::Duration;

use super::error::ImageError;

/// Limits on what an image may make this process read, hold and write.
///
/// The defaults let every image pass that real registries hold; each can be set by the environment variable
/// named with it, for an image that is known and needs more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one layer when decompressed: `ACETATE_MAX_LAYER_SIZE`, default 128 GiB.
    pub layer_size: u64,
    /// How many times larger than its compressed form a layer or an archive may be once it is over `ratio_free`:
    /// `ACETATE_MAX_LAYER_RATIO`, default 400. Deflate itself ends at about 1030, zstd far higher.
    pub layer_ratio: u64,
    /// Decompressed bytes that can always be afforded, whatever their ratio, default 1 GiB.
    pub ratio_free: u64,
    /// Entries in one layer: `ACETATE_MAX_LAYER_ENTRIES`, default 10 million.
    pub layer_entries: u64,
    /// Bytes of one manifest, index or configuration, default 8 MiB.
    pub document: u64,
    /// Layers of one image, default 1000.
    pub layers: usize,
    /// Bytes of headers before one entry (PAX records, long names, sparse maps), default 2 MiB.
    pub header: usize,
    /// How long to wait for another process that is unpacking the same layer, default one hour.
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            layer_size: 128 << 30,
            layer_ratio: 400,
            ratio_free: 1 << 30,
            layer_entries: 10_000_000,
            document: 8 << 20,
            layers: 1000,
            header: 2 << 20,
            wait: Duration::from_secs(3600),
        }
    }
}

impl Limits {
    /// The defaults, changed by the environment. A value that is no number is ignored with a warning.
    pub fn from_env() -> Limits {
        let mut limits = Limits::default();
        let set = |name: &str, field: &mut u64| {
            let Some(text) = std::env::var_os(name) else {
                return;
            };
            match text.to_str().and_then(parse_size) {
                Some(value) => *field = value,
                None => log::warn!("{name}={} is no size: ignored", text.to_string_lossy()),
            }
        };
        set("ACETATE_MAX_LAYER_SIZE", &mut limits.layer_size);
        set("ACETATE_MAX_LAYER_RATIO", &mut limits.layer_ratio);
        set("ACETATE_MAX_LAYER_ENTRIES", &mut limits.layer_entries);
        limits
    }

    /// An error where `name`, of which so many bytes gave so many when decompressed, is over the limits.
    pub(crate) fn check_decompressed(
        &self,
        name: &str,
        compressed: u64,
        decompressed: u64,
    ) -> Result<(), ImageError> {
        let over = |limit, unit, hint| {
            Err(ImageError::OverLimit {
                what: format!("the uncompressed {name}"),
                limit,
                unit,
                hint,
            })
        };
        if decompressed > self.layer_size {
            let hint = "set ACETATE_MAX_LAYER_SIZE to allow more";
            return over(self.layer_size, "bytes", hint);
        }
        if decompressed > self.ratio_free && decompressed / compressed.max(1) > self.layer_ratio {
            let hint = "set ACETATE_MAX_LAYER_RATIO to allow more";
            return over(self.layer_ratio, "times its compressed size", hint);
        }
        Ok(())
    }
}

/// A number with an optional binary suffix: `64G`, `512m`, `1000`.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.chars().last()?.to_ascii_lowercase() {
        'k' => (&text[..text.len() - 1], 10),
        'm' => (&text[..text.len() - 1], 20),
        'g' => (&text[..text.len() - 1], 30),
        't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes() {
        assert_eq!(parse_size("1000"), Some(1000));
        assert_eq!(parse_size("2k"), Some(2048));
        assert_eq!(parse_size("3G"), Some(3 << 30));
        assert_eq!(parse_size("99999999T"), None);
        assert_eq!(parse_size("x"), None);
        assert_eq!(parse_size(""), None);
    }
}
