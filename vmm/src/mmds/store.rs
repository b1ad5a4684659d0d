//! What the service knows: one JSON object, of bounded size.

use serde_json::{Map, Value};

/// Most bytes of JSON, unless somebody says otherwise: Firecracker's limit.
pub const DEFAULT_LIMIT: usize = 51_200;

/// Why the service knows what it knew before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It does not fit.
    #[error("The MMDS data would be {size} bytes of JSON, permitted are {limit}")]
    TooLarge {
        /// Bytes it would be.
        size: usize,
        /// Bytes it may be.
        limit: usize,
    },
    /// There is nothing to change.
    #[error("The MMDS data store is not initialized: PUT /mmds first")]
    NotInitialized,
    /// Names lead nowhere in it.
    #[error("The MMDS data is not a JSON object")]
    NotAnObject,
}

/// Why a guest does not get what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookupError {
    /// There is no such thing.
    NotFound,
    /// It has no form as plain text.
    NoText,
}

/// What the service knows.
#[derive(Debug)]
pub struct Store {
    data: Value,
    initialized: bool,
    limit: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            data: Value::Object(Map::new()),
            initialized: false,
            limit: DEFAULT_LIMIT,
        }
    }
}

impl Store {
    /// It may be this many bytes of JSON (`--mmds-size-limit`).
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// How many bytes of JSON it may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// All of it.
    pub fn get(&self) -> &Value {
        &self.data
    }

    /// Replaces all of it.
    pub fn put(&mut self, data: Value) -> Result<(), StoreError> {
        self.check(&data)?;
        self.data = data;
        self.initialized = true;
        Ok(())
    }

    /// Changes it by a JSON merge patch (RFC 7396).
    pub fn patch(&mut self, patch: &Value) -> Result<(), StoreError> {
        if !self.initialized {
            return Err(StoreError::NotInitialized);
        }
        let mut data = self.data.clone();
        merge(&mut data, patch);
        self.put(data)
    }

    fn check(&self, data: &Value) -> Result<(), StoreError> {
        if !data.is_object() {
            return Err(StoreError::NotAnObject);
        }
        let (size, limit) = (data.to_string().len(), self.limit);
        if size > limit {
            return Err(StoreError::TooLarge { size, limit });
        }
        Ok(())
    }

    /// What lies at `path`, names with slashes between, as JSON.
    pub(super) fn json(&self, path: &str) -> Result<String, LookupError> {
        let value = self.find(path)?;
        Ok(value.to_string())
    }

    /// As [`json`](Self::json), as the plain text of EC2's service: a text as it is, an object as the list of its names.
    pub(super) fn text(&self, path: &str) -> Result<String, LookupError> {
        match self.find(path)? {
            Value::String(text) => Ok(text.clone()),
            Value::Object(object) => {
                let lines = object.iter().map(|(name, value)| match value {
                    Value::Object(_) => format!("{name}/"),
                    _ => name.clone(),
                });
                Ok(lines.collect::<Vec<_>>().join("\n"))
            }
            _ => Err(LookupError::NoText),
        }
    }

    fn find(&self, path: &str) -> Result<&Value, LookupError> {
        let names = path.split('/').filter(|name| !name.is_empty());
        let mut value = &self.data;
        for name in names {
            // As in a JSON pointer (RFC 6901), where a name may have slashes of its own.
            let name = name.replace("~1", "/").replace("~0", "~");
            let found = match value {
                Value::Object(object) => object.get(&name),
                Value::Array(array) => name.parse().ok().and_then(|at: usize| array.get(at)),
                _ => None,
            };
            value = found.ok_or(LookupError::NotFound)?;
        }
        Ok(value)
    }
}

/// `MergePatch` of RFC 7396. JSON is read with a bounded depth, so this ends.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_are_merged_as_the_examples_of_the_rfc() {
        // RFC 7396, appendix A.
        for (mut original, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":"b"}),
                json!({"b":"c"}),
                json!({"a":"b", "b":"c"}),
            ),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b", "b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d", "c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null, "a":1})),
            (json!([1, 2]), json!({"a":"b", "c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ] {
            merge(&mut original, &patch);
            assert_eq!(original, result, "{patch}");
        }
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut store = Store::default();
        assert_eq!(store.patch(&json!({})), Err(StoreError::NotInitialized));
        assert_eq!(store.put(json!("text")), Err(StoreError::NotAnObject));
        store.set_limit(20);
        store.put(json!({"a": "0123456789"})).unwrap();
        let size = r#"{"a":"0123456789","b":1}"#.len();
        let too_large = Err(StoreError::TooLarge { size, limit: 20 });
        assert_eq!(store.patch(&json!({"b": 1})), too_large);
        assert_eq!(store.patch(&json!(1)), Err(StoreError::NotAnObject));
        assert_eq!(store.get(), &json!({"a": "0123456789"}));
    }

    #[test]
    fn names_lead_to_values_in_both_forms() {
        let mut store = Store::default();
        let data = json!({
            "latest": { "meta-data": { "ami-id": "ami-1", "n": 7, "tags": ["a", "b"] } },
            "a/b": { "~": "tilde" },
        });
        store.put(data).unwrap();
        assert_eq!(store.text("/").unwrap(), "a/b/\nlatest/");
        assert_eq!(store.text("/latest/").unwrap(), "meta-data/");
        assert_eq!(
            store.text("//latest//meta-data").unwrap(),
            "ami-id\nn\ntags"
        );
        assert_eq!(store.text("/latest/meta-data/ami-id").unwrap(), "ami-1");
        assert_eq!(store.json("/latest/meta-data/ami-id").unwrap(), "\"ami-1\"");
        assert_eq!(store.json("/latest/meta-data/n").unwrap(), "7");
        assert_eq!(store.json("/latest/meta-data/tags/1").unwrap(), "\"b\"");
        assert_eq!(store.text("/a~1b/~0").unwrap(), "tilde");
        let text = |path| store.text(path).unwrap_err();
        assert_eq!(text("/latest/meta-data/n"), LookupError::NoText);
        for path in [
            "/nothing",
            "/latest/meta-data/ami-id/x",
            "/latest/meta-data/tags/2",
        ] {
            assert_eq!(text(path), LookupError::NotFound);
        }
    }

    proptest! {
        #[test]
        fn any_path_is_harmless(path in "[/a-c~01]{0,40}") {
            let mut store = Store::default();
            store.put(json!({"a": {"b": [1, {"c": "d"}]}, "": {}})).unwrap();
            let _ = (store.text(&path), store.json(&path));
        }
    }
}
