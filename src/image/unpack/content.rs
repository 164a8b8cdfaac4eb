//! What files hold.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::extract::Extractor;
use super::tar_error;
use crate::image::error::ImageError;
use crate::image::tarball::{Entry, Kind, Region, Source, TarReader};
use crate::image::tee::begin_writeback;

/// Files of which the writeback is begun at once.
const LARGE: u64 = 1 << 20;

impl Extractor<'_> {
    /// Writes the content of the entry that `tar` is at.
    pub(super) fn write<S: Source>(
        &mut self,
        file: &File,
        entry: &Entry,
        path: &[u8],
        tar: &mut TarReader<S>,
    ) -> Result<(), ImageError> {
        let failed = |e: io::Error| ImageError::EntryIo {
            layer: self.layer.clone(),
            entry: String::from_utf8_lossy(path).into_owned(),
            action: "write",
            source: e,
        };
        let whole;
        let (regions, size) = match &entry.kind {
            Kind::Sparse { size, regions } => (&regions[..], *size),
            _ => {
                whole = [Region {
                    offset: 0,
                    length: entry.size,
                }];
                (&whole[..], entry.size)
            }
        };
        let mut end = 0;
        // A map may end with an empty region at the end of the file.
        for region in regions.iter().filter(|r| r.length > 0) {
            let mut offset = region.offset;
            end = region.offset + region.length;
            while offset < end {
                let chunk = tar.content().map_err(|e| tar_error(&self.layer, e))?;
                let n = usize::try_from(end - offset)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                let chunk = &chunk[..n];
                if n == 0 {
                    return Err(self.refuse(path, "its sparse map is larger than its data"));
                }
                if matches!(entry.kind, Kind::File) {
                    (&*file).write_all(chunk).map_err(failed)?;
                } else {
                    file.write_all_at(chunk, offset).map_err(failed)?;
                }
                offset += n as u64;
                tar.consume(n);
            }
        }
        if end < size {
            file.set_len(size).map_err(failed)?;
        }
        if entry.size >= LARGE {
            begin_writeback(file, 0);
        }
        Ok(())
    }
}
