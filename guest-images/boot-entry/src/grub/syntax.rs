//! The syntax of GRUB's scripts (GRUB manual, "Writing full configuration files"): enough to read what generators write.

/// Blocks within blocks; generators write three at most.
const MAX_DEPTH: usize = 16;
/// Commands of a script; a menu of a hundred kernels has some thousand.
const MAX_COMMANDS: usize = 20_000;

/// Part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// The value of a variable.
    Variable(String),
}

/// What becomes one argument.
pub type Word = Vec<Piece>;

/// A command or what is made of commands.
#[derive(Debug, PartialEq, Eq)]
pub enum Statement {
    /// A command with its arguments.
    Command(Vec<Word>),
    /// Conditions with what is done under each; an `else` has the empty condition.
    If(Vec<(Vec<Statement>, Vec<Statement>)>),
    /// `menuentry` or `submenu`, its arguments, its block.
    Menu {
        /// Whether it holds entries itself.
        is_submenu: bool,
        /// Title and options.
        words: Vec<Word>,
        /// The commands in braces.
        block: Vec<Statement>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    End,
    Open,
    Close,
}

/// Reads a script; what makes no sense is left out, and reading ends where a bound is met.
pub fn parse(text: &str) -> Vec<Statement> {
    let tokens = tokens(text);
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        left: MAX_COMMANDS,
    };
    let mut statements = Vec::new();
    while parser.at < tokens.len() {
        statements.append(&mut parser.block(0, &[]));
        // A stray `}` or `fi`.
        parser.at += 1;
    }
    statements
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        match next {
            '\n' | ';' | '|' | '&' => tokens.push(Token::End),
            '{' => tokens.push(Token::Open),
            '}' => tokens.push(Token::Close),
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            c if c.is_whitespace() => {}
            // A line that goes on in the next one.
            '\\' if chars.next_if_eq(&'\n').is_some() => {}
            first => tokens.push(Token::Word(word(first, &mut chars))),
        }
    }
    tokens
}

fn word(first: char, chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Word {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let (mut quoted, mut had_quotes) = (false, false);
    let mut current = Some(first);
    while let Some(c) = current {
        match c {
            '\'' if !quoted => {
                had_quotes = true;
                text.extend(chars.by_ref().take_while(|c| *c != '\''));
            }
            '"' => {
                had_quotes = true;
                quoted = !quoted;
            }
            '\\' => match chars.next() {
                Some('\n') | None => {}
                // Between double quotes a backslash only protects what would mean something there.
                Some(c) if quoted && !matches!(c, '$' | '"' | '\\') => text.extend(['\\', c]),
                Some(c) => text.push(c),
            },
            '$' => {
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Variable(variable(chars)));
            }
            c => text.push(c),
        }
        current = chars.next_if(|c| {
            quoted || !(c.is_whitespace() || matches!(c, ';' | '|' | '&' | '{' | '}'))
        });
    }
    // What stands in quotes is an argument even if it is empty.
    if !text.is_empty() || pieces.is_empty() || had_quotes {
        pieces.push(Piece::Text(text));
    }
    pieces
}

fn variable(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    if chars.next_if_eq(&'{').is_some() {
        return chars.by_ref().take_while(|c| *c != '}').collect();
    }
    if let Some(c) = chars.next_if(|c| matches!(c, '?' | '#' | '@' | '*')) {
        return c.to_string();
    }
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    name
}

struct Parser<'t> {
    tokens: &'t [Token],
    at: usize,
    left: usize,
}

impl Parser<'_> {
    /// Statements up to one of the words `until` or a closing brace, neither of which is taken.
    fn block(&mut self, depth: usize, until: &[&str]) -> Vec<Statement> {
        let mut statements = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            if depth > MAX_DEPTH || self.left == 0 {
                self.at = self.tokens.len();
                break;
            }
            self.left -= 1;
            match token {
                Token::End => self.at += 1,
                Token::Close => break,
                // A group of its own: its commands are like any others.
                Token::Open => {
                    self.at += 1;
                    statements.append(&mut self.block(depth + 1, &[]));
                    self.at += 1;
                }
                Token::Word(word) => {
                    let name = plain(word).unwrap_or_default();
                    if until.contains(&name) || matches!(name, "fi" | "done") && until.is_empty() {
                        break;
                    }
                    statements.extend(self.statement(depth, name));
                }
            }
        }
        statements
    }

    fn statement(&mut self, depth: usize, name: &str) -> Option<Statement> {
        match name {
            "if" => Some(self.conditional(depth)),
            // What these would do is not needed to find a kernel.
            "for" | "while" | "until" => {
                self.at += 1;
                self.block(depth + 1, &["done"]);
                self.at += 1;
                None
            }
            "function" => {
                self.words();
                self.braces(depth);
                None
            }
            "menuentry" | "submenu" => {
                let words = self.words();
                Some(Statement::Menu {
                    is_submenu: name == "submenu",
                    words: words.into_iter().skip(1).collect(),
                    block: self.braces(depth),
                })
            }
            _ => Some(Statement::Command(self.words())),
        }
    }

    fn conditional(&mut self, depth: usize) -> Statement {
        let mut branches = Vec::new();
        let mut keyword = "if";
        loop {
            self.at += 1;
            let condition = if keyword == "else" {
                Vec::new()
            } else {
                let condition = self.block(depth + 1, &["then", "fi"]);
                if self.keyword() == Some("then") {
                    self.at += 1;
                }
                condition
            };
            let body = self.block(depth + 1, &["elif", "else", "fi"]);
            branches.push((condition, body));
            keyword = match self.keyword() {
                Some("elif") => "elif",
                Some("else") => "else",
                other => {
                    self.at += usize::from(other == Some("fi"));
                    return Statement::If(branches);
                }
            };
        }
    }

    fn keyword(&self) -> Option<&str> {
        match self.tokens.get(self.at)? {
            Token::Word(word) => plain(word),
            _ => None,
        }
    }

    /// The words of one command.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    /// A block in braces, if one follows; it may begin in a later line.
    fn braces(&mut self, depth: usize) -> Vec<Statement> {
        while self.tokens.get(self.at) == Some(&Token::End) {
            self.at += 1;
        }
        if self.tokens.get(self.at) != Some(&Token::Open) {
            return Vec::new();
        }
        self.at += 1;
        let block = self.block(depth + 1, &[]);
        self.at += 1;
        block
    }
}

/// The word, if it is text only.
pub fn plain(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}
