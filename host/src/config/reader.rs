//! Typed access to a parsed TOML table, with the line of everything that is wrong.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Problem, nearest};

/// A value and where it stood.
pub struct Located<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// The text, to turn byte offsets into lines.
pub struct Document<'t> {
    file: &'t str,
    text: &'t str,
}

impl<'t> Document<'t> {
    pub fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text }
    }

    /// Line of a span's start, counted from 1.
    pub fn line(&self, span: Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    pub fn error(&self, span: Range<usize>, problem: Problem) -> ConfigError {
        self.error_at(self.line(span), problem)
    }

    pub fn error_at(&self, line: usize, problem: Problem) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line,
            problem: Box::new(problem),
        }
    }

    pub fn syntax_error(&self, error: &toml::de::Error) -> ConfigError {
        let message = error.message().replace('\n', ", ");
        self.error(error.span().unwrap_or(0..0), Problem::Syntax(message))
    }
}

/// One table, with the words for it in messages.
pub struct Section<'d, 't> {
    document: &'d Document<'t>,
    table: &'d DeTable<'t>,
    span: Range<usize>,
    place: String,
}

impl<'d, 't> Section<'d, 't> {
    pub fn new(
        document: &'d Document<'t>,
        table: &'d DeTable<'t>,
        span: Range<usize>,
        place: impl Into<String>,
    ) -> Self {
        Self {
            document,
            table,
            span,
            place: place.into(),
        }
    }

    /// Names the first key that is not `known`, with the nearest one that is.
    pub fn refuse_unknown(&self, known: &[&str]) -> Result<(), ConfigError> {
        let unknown = self
            .table
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        let Some(key) = unknown else { return Ok(()) };
        let name = key.get_ref().as_ref();
        let problem = Problem::UnknownKey {
            key: name.to_owned(),
            place: self.place.clone(),
            nearest: nearest(name, known.iter().copied()).map(str::to_owned),
        };
        Err(self.document.error(key.span(), problem))
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn get(&self, key: &str) -> Option<&'d Spanned<DeValue<'t>>> {
        // A map lookup needs an owned spanned key; tables here have a dozen entries.
        self.table
            .iter()
            .find(|(name, _)| name.get_ref() == key)
            .map(|(_, value)| value)
    }

    fn wrong_type(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &'static str,
    ) -> ConfigError {
        let problem = Problem::WrongType {
            key: key.to_owned(),
            place: self.place.clone(),
            expected,
            found: value.get_ref().type_str(),
        };
        self.document.error(value.span(), problem)
    }

    pub fn bad_value(
        &self,
        key: &str,
        span: Range<usize>,
        value: impl Into<String>,
        reason: impl Into<String>,
    ) -> ConfigError {
        let problem = Problem::BadValue {
            key: key.to_owned(),
            place: self.place.clone(),
            value: value.into(),
            reason: reason.into(),
        };
        self.document.error(span, problem)
    }

    pub fn missing(&self, key: &'static str, hint: &'static str) -> ConfigError {
        let problem = Problem::MissingKey {
            key,
            place: self.place.clone(),
            hint,
        };
        self.document.error(self.span.clone(), problem)
    }

    pub fn string(&self, key: &str) -> Result<Option<Located<String>>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::String(text) => Ok(Some(Located {
                value: text.to_string(),
                span: value.span(),
            })),
            _ => Err(self.wrong_type(key, value, "a string")),
        }
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(Some(*flag)),
            _ => Err(self.wrong_type(key, value, "true or false")),
        }
    }

    pub fn integer(&self, key: &str) -> Result<Option<Located<i64>>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::Integer(number) => {
                let text = number.as_str().replace('_', "");
                i64::from_str_radix(&text, number.radix())
                    .map(|value_| {
                        Some(Located {
                            value: value_,
                            span: value.span(),
                        })
                    })
                    .map_err(|_| {
                        self.bad_value(key, value.span(), text, "the number does not fit 64 bits")
                    })
            }
            _ => Err(self.wrong_type(key, value, "an integer")),
        }
    }

    /// Whether the value is a TOML string, for keys that take a string or a number.
    pub fn is_string(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.get_ref().is_str())
    }

    pub fn table(
        &self,
        key: &str,
        place: impl Into<String>,
    ) -> Result<Option<Section<'d, 't>>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::Table(table) => Ok(Some(Section::new(
                self.document,
                table,
                value.span(),
                place,
            ))),
            _ => Err(self.wrong_type(key, value, "a table")),
        }
    }

    pub fn array(&self, key: &str) -> Result<Vec<&'d Spanned<DeValue<'t>>>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        match value.get_ref() {
            DeValue::Array(array) => Ok(array.iter().collect()),
            _ => Err(self.wrong_type(key, value, "sections written with two brackets, [[...]]")),
        }
    }

    /// The tables of an array of tables, each named `place`.
    pub fn tables(&self, key: &str, place: &str) -> Result<Vec<Section<'d, 't>>, ConfigError> {
        let mut sections = Vec::new();
        for value in self.array(key)? {
            let DeValue::Table(table) = value.get_ref() else {
                return Err(self.wrong_type(
                    key,
                    value,
                    "sections written with two brackets, [[...]]",
                ));
            };
            sections.push(Section::new(self.document, table, value.span(), place));
        }
        Ok(sections)
    }

    /// The strings of a list; none without the key.
    pub fn strings(&self, key: &str) -> Result<Vec<Located<String>>, ConfigError> {
        const EXPECTED: &str = "a list of strings";
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let DeValue::Array(array) = value.get_ref() else {
            return Err(self.wrong_type(key, value, EXPECTED));
        };
        let read = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
            DeValue::String(text) => Ok(Located {
                value: text.to_string(),
                span: item.span(),
            }),
            _ => Err(self.wrong_type(key, item, EXPECTED)),
        };
        array.iter().map(read).collect()
    }

    pub fn document(&self) -> &'d Document<'t> {
        self.document
    }

    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}
