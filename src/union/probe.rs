//! The reader of journals, without a mount: what the fuzz target `journal` calls, and the test that replays its corpus.

use super::book::Book;
use super::record::Record;

/// Reads a journal up to the first record that cannot be read. Gives how many nodes the kernel knows by it; `Err` when what is
/// written again, condensed, is read as something else, or when a record is.
pub fn journal(bytes: &[u8]) -> Result<usize, String> {
    let mut rest = bytes;
    while let Some((record, next)) = Record::decode(rest) {
        let mut written = Vec::new();
        record.encode(&mut written);
        match Record::decode(&written) {
            Some((again, [])) if again == record => {}
            again => return Err(format!("{record:?} is read again as {again:?}")),
        }
        rest = next;
    }
    let book = Book::read(bytes);
    // In any other table files may stand that are not found.
    if !book.base().table().is_sorted() {
        return Ok(0);
    }
    let log = book.to_log();
    let again = Book::read(&log[..]);
    let nodes = book.all_nodes();
    if (&again.all_nodes(), &again.opens) != (&nodes, &book.opens) {
        return Err(format!("{book:?} is read again as {again:?}"));
    }
    Ok(nodes.len())
}
