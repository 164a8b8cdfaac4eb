//! The choice among the platforms of an image.

use oci_spec::image::{Arch, Os, Platform};

use super::error::ImageError;

/// A platform that is wanted, in the spelling of the OCI specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) os: String,
    pub(crate) arch: String,
    pub(crate) variant: Option<String>,
    /// The user named it, so another one will not do.
    pub(crate) explicit: bool,
}

impl Wanted {
    /// What `--platform` says, or this machine.
    pub(crate) fn new(platform: Option<&str>) -> Result<Wanted, ImageError> {
        let Some(text) = platform else {
            let (arch, variant) = normalise(&Arch::default().to_string(), None);
            return Ok(Wanted {
                os: Os::default().to_string(),
                arch,
                variant,
                explicit: false,
            });
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, arch, variant) = match parts[..] {
            [os, arch] => (os, arch, None),
            [os, arch, variant] => (os, arch, Some(variant)),
            _ => ("", "", None),
        };
        let word = |s: &str| {
            !s.is_empty()
                && s.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !word(os) || !word(arch) || variant.is_some_and(|v| !word(v)) {
            return Err(ImageError::InvalidPlatform {
                platform: text.to_owned(),
            });
        }
        let (arch, variant) = normalise(arch, variant);
        Ok(Wanted {
            os: os.to_ascii_lowercase(),
            arch,
            variant,
            explicit: true,
        })
    }

    /// The platform that a configuration says it is for.
    pub(crate) fn of(config: &serde_json::Value) -> Result<Wanted, ImageError> {
        let text = |key: &str| config.get(key).and_then(serde_json::Value::as_str);
        let mut platform = format!(
            "{}/{}",
            text("os").unwrap_or_default(),
            text("architecture").unwrap_or_default()
        );
        if let Some(variant) = text("variant").filter(|v| !v.is_empty()) {
            platform.push('/');
            platform.push_str(variant);
        }
        Wanted::new(Some(&platform))
    }

    /// How well an image for this platform runs: lower is better, `None` not at all.
    pub(crate) fn rank(&self, os: &str, arch: &str, variant: Option<&str>) -> Option<u32> {
        let (arch, variant) = normalise(arch, variant);
        if os != self.os || arch != self.arch {
            return None;
        }
        // A processor runs what was built for its own variant and for lower ones.
        let level = |variant: &Option<String>| match variant {
            None => Some(base_level(&arch)),
            Some(v) => v.strip_prefix('v').and_then(|n| n.parse::<u32>().ok()),
        };
        if variant == self.variant {
            return Some(0);
        }
        match (level(&self.variant), level(&variant)) {
            (Some(mine), Some(its)) => mine.checked_sub(its),
            _ => None,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// The variant that is meant when none is named.
fn base_level(arch: &str) -> u32 {
    match arch {
        "arm64" => 8,
        "arm" => 7,
        _ => 1,
    }
}

/// The names of the Go language for what users and kernels call it, and no variant where it is the usual one.
fn normalise(arch: &str, variant: Option<&str>) -> (String, Option<String>) {
    let arch = arch.to_ascii_lowercase();
    let (arch, implied) = match arch.as_str() {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" => ("arm64", None),
        "armhf" | "armv7l" | "armv7" => ("arm", Some("v7")),
        "armel" | "armv6l" => ("arm", Some("v6")),
        "i386" | "i686" | "x86" => ("386", None),
        "powerpc64le" => ("ppc64le", None),
        other => (other, None),
    };
    let variant = variant
        .filter(|v| !v.is_empty())
        .or(implied)
        .map(|v| {
            let v = v.to_ascii_lowercase();
            if v.starts_with('v') {
                v
            } else {
                format!("v{v}")
            }
        })
        .filter(|v| *v != format!("v{}", base_level(arch)));
    (arch.to_owned(), variant)
}

/// A platform as a descriptor has it, in words.
pub(crate) fn describe(platform: &Platform) -> String {
    let mut text = format!("{}/{}", platform.os(), platform.architecture());
    if let Some(variant) = platform.variant() {
        text.push('/');
        text.push_str(variant);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_ranked() {
        let arm = Wanted::new(Some("linux/arm/v7")).unwrap();
        assert_eq!(arm.rank("linux", "arm", Some("v7")), Some(0));
        assert_eq!(arm.rank("linux", "arm", None), Some(0));
        assert_eq!(arm.rank("linux", "arm", Some("v6")), Some(1));
        assert_eq!(arm.rank("linux", "arm", Some("v8")), None);
        assert_eq!(arm.rank("linux", "arm64", None), None);
        let amd = Wanted::new(Some("linux/x86_64")).unwrap();
        assert_eq!(amd.rank("linux", "amd64", None), Some(0));
        assert_eq!(amd.rank("linux", "amd64", Some("v1")), Some(0));
        assert_eq!(amd.rank("linux", "amd64", Some("v3")), None);
        assert_eq!(amd.rank("windows", "amd64", None), None);
        let v3 = Wanted::new(Some("linux/amd64/v3")).unwrap();
        assert_eq!(v3.rank("linux", "amd64", Some("v2")), Some(1));
        assert_eq!(v3.rank("linux", "amd64", None), Some(2));
        let arm64 = Wanted::new(Some("linux/arm64/v8")).unwrap();
        assert_eq!(arm64.rank("linux", "arm64", None), Some(0));
        assert_eq!(arm64.to_string(), "linux/arm64");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d"] {
            assert!(Wanted::new(Some(text)).is_err(), "{text:?}");
        }
    }
}
