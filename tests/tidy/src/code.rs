// SPDX-License-Identifier: Apache-2.0
//! What of a source is code: comments and literals blanked out, lines kept where they are.

/// Rust and C alike. Contents of comments, strings and characters become spaces.
pub fn strip(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins here ends; `at` when none begins here.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
    let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match (chars[at], next(1)) {
        ('/', '/') => chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n),
        ('/', '*') => comment_end(chars, at),
        ('"', _) => quoted_end(chars, at + 1, '"'),
        ('r', '"' | '#') if !after_word => raw_end(chars, at, at + 1),
        ('b', 'r') if !after_word && matches!(next(2), '"' | '#') => raw_end(chars, at, at + 2),
        // A lifetime has no closing quote.
        ('\'', '\\') => quoted_end(chars, at + 1, '\''),
        ('\'', _) if next(2) == '\'' => at + 3,
        _ => at,
    }
}

/// Rust's comments nest; in C none of ours does.
fn comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn quoted_end(chars: &[char], mut i: usize, quote: char) -> usize {
    while i < chars.len() && chars[i] != quote {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

fn raw_end(chars: &[char], at: usize, hashes_at: usize) -> usize {
    let hashes = chars[hashes_at..].iter().take_while(|c| **c == '#').count();
    if chars.get(hashes_at + hashes) != Some(&'"') {
        return at;
    }
    let mut i = hashes_at + hashes + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    chars.len()
}

/// Whether the line holds the text with no letter, digit or underscore at either end of it.
pub fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let (first, last) = (word.chars().next(), word.chars().next_back());
        (!part_of_word(first) || !part_of_word(line[..at].chars().next_back()))
            && (!part_of_word(last) || !part_of_word(line[at + word.len()..].chars().next()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_stays() {
        for (text, code) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"f("x\"y", z)"#, "f( , z)"),
            (r##"f(r#"x"y"#, z)"##, "f( , z)"),
            ("br\"x\" for 'a' '\\'' <'b>", "for <'b>"),
            ("number\"x\"", "number"),
            ("\"open", ""),
        ] {
            let got = strip(text);
            assert_eq!(got.split_whitespace().collect::<Vec<_>>(), code.split_whitespace().collect::<Vec<_>>(), "{text}");
            assert_eq!(got.chars().count(), text.chars().count());
        }
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("x unsafe {", "unsafe") && has_word("a::setns(b)", "setns(") && has_word("(unsafe)", "unsafe"));
        assert!(!has_word("unsafe_op", "unsafe") && !has_word("mysetns(b)", "setns("));
    }
}
