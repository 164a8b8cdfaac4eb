//! Columns of text.

/// Lines whose columns are as wide as their widest cell; the first column begins at the left, the others end at the right.
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(i) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let blanks = " ".repeat(width - cell.chars().count());
                if i == 0 {
                    line.push_str(cell);
                    line.push_str(&blanks);
                } else {
                    line.push_str("  ");
                    line.push_str(&blanks);
                    line.push_str(cell);
                }
            }
            line.trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        let rows = [["a", "long"], ["µµ", "1"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(columns(&rows), ["a   long", "µµ     1"]);
    }
}
