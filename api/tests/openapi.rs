//! The published contract and the code say the same.

use api::routes::{self, ROUTES};
use api::testing::{Contract, Operation};
use api::{Fault, Request};
use serde_json::{Value, json};

fn parse(operation: &Operation<'_>, body: &Value) -> Result<Request, Fault> {
    let path = operation.path.replace("{id}", "x");
    routes::parse(operation.method.name(), &path, body.to_string().as_bytes())
}

/// Every place in `value` that has something, as a JSON pointer.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), value))
            .collect(),
        Value::Array(items) => (0..)
            .zip(items)
            .map(|(i, value): (usize, _)| (i.to_string(), value))
            .collect(),
        _ => return,
    };
    for (name, value) in inner {
        let place = format!("{at}/{name}");
        places(value, &place, all);
        all.push(place);
    }
}

#[test]
fn every_route_is_in_the_contract_and_the_reverse() {
    let contract = Contract::new();
    let mut published: Vec<_> = contract
        .operations()
        .iter()
        .map(|operation| format!("{} {}", operation.method, operation.path))
        .collect();
    let mut served: Vec<_> = ROUTES
        .iter()
        .map(|route| format!("{} {}", route.method, route.path))
        .collect();
    published.sort();
    served.sort();
    assert_eq!(published, served);
}

#[test]
fn every_example_is_valid_and_understood() {
    let contract = Contract::new();
    for operation in contract.operations() {
        let what = format!("{} {}", operation.method, operation.path);
        match operation.example() {
            Some(example) => {
                operation
                    .check_body(example)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                parse(&operation, example)
                    .unwrap_or_else(|fault| panic!("{what}: {}", fault.message));
            }
            None => {
                let path = operation.path.replace("{id}", "x");
                let request = routes::parse(operation.method.name(), &path, b"").unwrap();
                let refused = matches!(request, Request::NotSupported(_));
                assert_eq!(refused, !operation.is_supported(), "{what}");
            }
        }
    }
}

/// Each field of each example by itself: of another type, out of its range, missing, or with a stranger beside it.
#[test]
fn contract_and_code_refuse_the_same_bodies() {
    let contract = Contract::new();
    let strange = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1),
        json!(0.5),
        json!("text"),
        json!([]),
        json!({}),
        json!([1]),
        json!({"stranger": 1}),
        json!(65_536),
        json!(4_294_967_296_u64),
        json!(9_223_372_036_854_775_808_u64),
    ];
    let mut cases = 0;
    for operation in contract.operations() {
        let Some(example) = operation.example() else {
            continue;
        };
        // Metadata is any JSON object; what else is none is the data store's to refuse.
        if operation.path == "/mmds" {
            continue;
        }
        let mut all = vec![String::new()];
        places(example, "", &mut all);
        let mut bodies = Vec::new();
        for place in &all {
            for value in &strange {
                let mut body = example.clone();
                *body.pointer_mut(place).unwrap() = value.clone();
                bodies.push(body);
            }
            let mut body = example.clone();
            if let Some(fields) = body.pointer_mut(place).unwrap().as_object_mut() {
                fields.insert("stranger".into(), json!(1));
                bodies.push(body);
            }
            if let Some((parent, name)) = place.rsplit_once('/') {
                let mut body = example.clone();
                if let Some(fields) = body.pointer_mut(parent).unwrap().as_object_mut() {
                    fields.remove(name);
                    bodies.push(body);
                }
            }
        }
        for body in bodies {
            let says = operation.check_body(&body);
            let does = parse(&operation, &body);
            // Where a field may be absent, the code takes null for absent, as Firecracker does. A name that is not that of
            // the path is refused by the code alone.
            if body_has_null(&body)
                || does
                    .as_ref()
                    .is_err_and(|fault| fault.message.contains("does not match"))
            {
                continue;
            }
            // Serde reads a struct from an array of its fields as well; the contract does not promise that.
            if says.is_err() && does.is_ok() && body_has_array_for_object(example, &body) {
                continue;
            }
            cases += 1;
            assert_eq!(
                says.is_ok(),
                does.is_ok(),
                "{} {} {body}: {says:?}, {does:?}",
                operation.method,
                operation.path
            );
        }
    }
    assert!(cases > 2000, "{cases}");
}

fn body_has_null(body: &Value) -> bool {
    let mut all = vec![String::new()];
    places(body, "", &mut all);
    all.iter()
        .any(|place| body.pointer(place).is_some_and(Value::is_null))
}

fn body_has_array_for_object(example: &Value, body: &Value) -> bool {
    let mut all = vec![String::new()];
    places(example, "", &mut all);
    all.iter().any(|place| {
        let object = example.pointer(place).is_some_and(Value::is_object);
        object && body.pointer(place).is_some_and(Value::is_array)
    })
}
