// SPDX-License-Identifier: Apache-2.0
//! Selectors, field by field.

use super::cursor::{Cursor, all, narrowing_list, one_of, optional};
use crate::label::check_value;
use crate::selector::{Expression, KeyError, Operator, SelectorKey, SelectorSpec};
use std::collections::BTreeMap;

pub fn selector(at: &Cursor<'_>) -> Option<SelectorSpec> {
    let fields = at.map("a selector")?;
    let allowed = fields.allow(&["matchLabels", "matchExpressions"], &[]);
    let match_labels = fields.get("matchLabels").map_or(Some(Default::default()), |f| match_labels(&f.value));
    let match_expressions = narrowing_list(&fields, "matchExpressions", "expressions");
    let match_expressions = optional(match_expressions, |items| all(items, expression));
    allowed?;
    Some(SelectorSpec { match_labels: match_labels?, match_expressions: match_expressions?.unwrap_or_default() })
}

fn match_labels(at: &Cursor<'_>) -> Option<BTreeMap<SelectorKey, String>> {
    let fields = at.map("labels")?;
    let mut labels = BTreeMap::new();
    for field in &fields.fields {
        let key = field.name.parse::<SelectorKey>().map_err(|e| field.error(e.to_string())).ok();
        // `key:` without a value is the empty value, as in `reserved:host:`.
        let value = if field.value.is_null() { Some(String::new()) } else { label_value(&field.value) };
        let (Some(key), Some(value)) = (key, value) else { continue };
        let text = key.to_string();
        if labels.insert(key, value).is_some() {
            field.error(format!("label `{text}` is given twice"));
        }
    }
    (labels.len() == fields.fields.len()).then_some(labels)
}

pub fn label_value(at: &Cursor<'_>) -> Option<String> {
    let text = at.text("a label value")?;
    check_value(text).map_err(|e| at.error(e.to_string())).ok()?;
    Some(text.to_owned())
}

fn expression(at: &Cursor<'_>) -> Option<Expression> {
    let fields = at.map("an expression")?;
    let allowed = fields.allow(&["key", "operator", "values"], &[]);
    let key = fields.required("key", "a label key").and_then(selector_key);
    let operator = fields.required("operator", "In, NotIn, Exists or DoesNotExist");
    let operator = operator.and_then(|o| one_of(o, "operator", &Operator::ALL, Operator::as_str, false))?;
    let values = match fields.value("values") {
        Some(list) => all(list.list("label values")?, label_value)?,
        None => Vec::new(),
    };
    if operator.takes_values() == values.is_empty() {
        let rule = if operator.takes_values() { "needs at least one value" } else { "takes no values" };
        fields.get("values").map_or(at, |f| &f.value).error(format!("operator {} {rule}", operator.as_str()));
        return None;
    }
    allowed?;
    Some(Expression { key: key?, operator, values })
}

fn selector_key(at: &Cursor<'_>) -> Option<SelectorKey> {
    at.text("a label key")?.parse().map_err(|e: KeyError| at.error(e.to_string())).ok()
}
