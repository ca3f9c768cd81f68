//! The useful part of Docker's `--format` templates: `{{.Key}}`, `{{.Key.Inner}}` and `{{json .Key}}`.

use serde_json::Value;

/// Fills a template from a JSON object.
///
/// # Errors
/// A sentence about the part that is not understood or the key that is not there.
pub fn render(template: &str, value: &Value) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = unescape(template);
    while let Some(start) = rest.find("{{") {
        let end = rest[start..].find("}}").ok_or("a {{ has no }}")? + start;
        out.push_str(&rest[..start]);
        out.push_str(&action(rest[start + 2..end].trim(), value)?);
        rest = rest[end + 2..].to_owned();
    }
    out.push_str(&rest);
    Ok(out)
}

fn action(action: &str, value: &Value) -> Result<String, String> {
    if let Some(path) = action.strip_prefix("json ") {
        return Ok(lookup(path.trim(), value)?.to_string());
    }
    match lookup(action, value)? {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        other => Ok(other.to_string()),
    }
}

fn lookup<'a>(path: &str, value: &'a Value) -> Result<&'a Value, String> {
    let keys = path.strip_prefix('.').ok_or_else(|| {
        format!("\"{{{{{path}}}}}\" is not understood: only {{{{.Key}}}} and {{{{json .Key}}}} are")
    })?;
    let mut found = value;
    for key in keys.split('.').filter(|key| !key.is_empty()) {
        found = found.get(key).ok_or_else(|| {
            let known: Vec<&str> = found
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, _)| k.as_str())
                .collect();
            format!("there is no key \"{key}\"; there are: {}", known.join(", "))
        })?;
    }
    Ok(found)
}

fn unescape(template: &str) -> String {
    template.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_filled_in() {
        let value = json!({"Name": "web", "IPAM": {"Config": [{"Subnet": "10.0.1.0/24"}]}, "Internal": false});
        assert_eq!(
            render("{{.Name}}\\t{{ .Internal }}", &value).unwrap(),
            "web\tfalse"
        );
        assert_eq!(
            render("{{json .IPAM.Config}}", &value).unwrap(),
            r#"[{"Subnet":"10.0.1.0/24"}]"#
        );
        assert_eq!(render("plain", &value).unwrap(), "plain");
        assert!(
            render("{{json .}}", &value)
                .unwrap()
                .starts_with("{\"Name\"")
        );
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let value = json!({"Name": "web"});
        assert!(
            render("{{.Nam}}", &value)
                .unwrap_err()
                .contains("there are: Name")
        );
        assert!(
            render("{{range .X}}", &value)
                .unwrap_err()
                .contains("not understood")
        );
        assert!(render("{{.Name", &value).unwrap_err().contains("no }}"));
    }
}
