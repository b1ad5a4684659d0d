//! The published contract, `openapi.json`, as something that tests hold requests and answers against.
//!
//! It knows as much of JSON Schema as the file uses, and is strict about the rest: a keyword it does not know fails.

use serde_json::{Map, Value};

use crate::routes::Method;

/// The published file.
const FILE: &str = include_str!("../openapi.json");

/// The contract.
pub struct Contract(Value);

/// One operation of it.
pub struct Operation<'a> {
    /// The method.
    pub method: Method,
    /// The path; `{id}` stands for a name.
    pub path: &'a str,
    contract: &'a Contract,
    value: &'a Value,
}

impl Default for Contract {
    fn default() -> Self {
        Self::new()
    }
}

impl Contract {
    /// Reads the published file.
    #[expect(clippy::expect_used, reason = "for tests, which fail without it")]
    pub fn new() -> Self {
        Self(serde_json::from_str(FILE).expect("openapi.json is JSON"))
    }

    /// All operations.
    pub fn operations(&self) -> Vec<Operation<'_>> {
        let paths = self.0["paths"].as_object().into_iter().flatten();
        let all = paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().into_iter().flatten();
            methods.filter_map(move |(method, value)| {
                Some(Operation {
                    method: Method::from_name(&method.to_uppercase())?,
                    path,
                    contract: self,
                    value,
                })
            })
        });
        all.collect()
    }

    /// The operation that a request is for.
    pub fn find(&self, method: &str, path: &str) -> Option<Operation<'_>> {
        let same = |template: &str| {
            let (mut given, mut own) = (path.split('/'), template.split('/'));
            loop {
                match (given.next(), own.next()) {
                    (None, None) => return true,
                    (Some(_), Some("{id}")) => {}
                    (given, own) if given == own => {}
                    _ => return false,
                }
            }
        };
        let mut all = self.operations().into_iter();
        all.find(|operation| operation.method.name() == method && same(operation.path))
    }

    /// Checks an answer: its status is one of the contract's, and its body what the contract says.
    pub fn check_answer(
        &self,
        method: &str,
        path: &str,
        status: u16,
        body: &Value,
    ) -> Result<(), String> {
        let Some(operation) = self.find(method, path) else {
            // Nothing is promised but a fault.
            let fault = &self.0["components"]["schemas"]["Fault"];
            return match status {
                400 => self.check(fault, body, "body"),
                other => Err(format!("Status {other} of a path that is not there")),
            };
        };
        let responses = &operation.value["responses"];
        let response = match (&responses[status.to_string()], status) {
            (Value::Null, 408 | 413 | 503) => &responses["default"],
            (Value::Null, _) => return Err(format!("Status {status} is not in the contract")),
            (response, _) => response,
        };
        match &self.resolve(response)["content"]["application/json"]["schema"] {
            Value::Null if body.is_null() => Ok(()),
            Value::Null => Err(format!("A body where there should be none: {body}")),
            schema => self.check(schema, body, "body"),
        }
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let pointer = value["$ref"].as_str().and_then(|at| at.strip_prefix('#'));
        pointer.map_or(value, |at| self.0.pointer(at).unwrap_or(&Value::Null))
    }

    /// Whether `value` is what `schema` says; `place` is for the message.
    fn check(&self, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        let Some(schema) = schema.as_object() else {
            return Err(format!("{place}: there is no schema for it"));
        };
        for (keyword, wants) in schema {
            let holds = match keyword.as_str() {
                "description" | "items" | "properties" | "additionalProperties" => true,
                "type" => wants.as_str() == Some(type_of(value)),
                "enum" => wants.as_array().is_some_and(|all| all.contains(value)),
                "minimum" => at_least(value, wants),
                "maximum" => at_least(wants, value),
                "required" => {
                    let mut all = wants.as_array().into_iter().flatten();
                    all.all(|name| name.as_str().is_some_and(|name| value.get(name).is_some()))
                }
                other => return Err(format!("{place}: the keyword {other} is not known here")),
            };
            if !holds {
                return Err(format!(
                    "{place} is {value}, which is not {keyword} {wants}"
                ));
            }
        }
        if let (Some(items), Some(all)) = (schema.get("items"), value.as_array()) {
            for item in all {
                self.check(items, item, &format!("{place}[]"))?;
            }
        }
        match value.as_object() {
            Some(fields) => self.check_fields(schema, fields, place),
            None => Ok(()),
        }
    }

    fn check_fields(
        &self,
        schema: &Map<String, Value>,
        fields: &Map<String, Value>,
        place: &str,
    ) -> Result<(), String> {
        for (name, value) in fields {
            let known = schema.get("properties").and_then(|all| all.get(name));
            match (known, schema.get("additionalProperties")) {
                (Some(known), _) => self.check(known, value, &format!("{place}.{name}"))?,
                (None, Some(Value::Bool(false))) => {
                    return Err(format!("{place} has the unknown field {name}"));
                }
                (None, _) => {}
            }
        }
        Ok(())
    }
}

impl Operation<'_> {
    fn content(&self) -> &Value {
        &self.value["requestBody"]["content"]["application/json"]
    }

    /// An example of its body, if it has one.
    pub fn example(&self) -> Option<&Value> {
        self.content().get("example")
    }

    /// Whether its answer can be anything but a fault.
    pub fn is_supported(&self) -> bool {
        let responses = &self.value["responses"];
        !responses["200"].is_null() || !responses["204"].is_null()
    }

    /// Checks the body of a request.
    pub fn check_body(&self, body: &Value) -> Result<(), String> {
        self.contract.check(&self.content()["schema"], body, "body")
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether `a` is at least `b`, as integers.
fn at_least(a: &Value, b: &Value) -> bool {
    let wide = |value: &Value| {
        let signed = value.as_i64().map(i128::from);
        signed.or_else(|| value.as_u64().map(i128::from))
    };
    wide(a).zip(wide(b)).is_some_and(|(a, b)| a >= b)
}
