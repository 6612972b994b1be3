//! Whether a change of schemas breaks whoever has those of the last release: readers of archived
//! bodies, `--where` expressions and JSON, and generated code. A pure function of two descriptor sets,
//! and a table of small changes that shows each rule.
//!
//! The rules are those that `buf breaking` has for wire, JSON and generated names, as far as a platform
//! of events meets them. There is no kept library of them in Rust (`proto-sign` has had one release),
//! and buf itself is a Go program that would have to be fetched.
//!
//! A package whose version is new (`shop.order.v2`) is another package, and breaks nothing.

use std::collections::{BTreeMap, BTreeSet};

use protox::prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
};

/// Returns everything that breaks, a line each, with its place.
pub(crate) fn breaking(before: &FileDescriptorSet, after: &FileDescriptorSet) -> Vec<String> {
    let mut broken: Vec<String> = after.file.iter().filter_map(unfit).collect();
    let (before, after) = (Declared::of(before), Declared::of(after));
    for package in before.packages.difference(&after.packages) {
        broken.push(format!("package `{package}` is gone"));
    }
    let is_left = |package: &&str| after.packages.contains(package);
    for (name, (package, message)) in before.messages.iter().filter(|(_, (at, _))| is_left(at)) {
        match after.messages.get(name) {
            Some((_, now)) => compare_messages(&mut broken, name, message, now),
            None => broken.push(format!("message `{name}` is gone from package `{package}`")),
        }
    }
    for (name, (package, of_before)) in before.enums.iter().filter(|(_, (at, _))| is_left(at)) {
        match after.enums.get(name) {
            Some((_, now)) => compare_enums(&mut broken, name, of_before, now),
            None => broken.push(format!("enum `{name}` is gone from package `{package}`")),
        }
    }
    for (name, (package, service)) in before.services.iter().filter(|(_, (at, _))| is_left(at)) {
        match after.services.get(name) {
            Some((_, now)) => compare_services(&mut broken, name, service, now),
            None => broken.push(format!("service `{name}` is gone from package `{package}`")),
        }
    }
    broken
}

/// Refuses what these rules are not made for: proto2 has groups, required fields and defaults of its
/// own, and closed enums. Google's own files are whatever they are.
fn unfit(file: &FileDescriptorProto) -> Option<String> {
    let is_fit = file.syntax() == "proto3" || file.package().starts_with("google.");
    (!is_fit).then(|| format!("`{}`: it is not proto3, and these rules are for that", file.name()))
}

/// Returns the first number from one up to another, both among them, that no range has. Ranges have
/// their ends in them.
fn uncovered(from: i32, to: i32, ranges: &[(i32, i32)]) -> Option<i32> {
    let mut number = from;
    while number <= to {
        match ranges.iter().find(|(start, end)| (*start..=*end).contains(&number)) {
            Some((_, end)) => number = end.checked_add(1)?,
            None => return Some(number),
        }
    }
    None
}

/// Everything of a descriptor set by its full name, with its package.
#[derive(Default)]
struct Declared<'a> {
    packages: BTreeSet<&'a str>,
    messages: BTreeMap<String, (&'a str, &'a DescriptorProto)>,
    enums: BTreeMap<String, (&'a str, &'a EnumDescriptorProto)>,
    services: BTreeMap<String, (&'a str, &'a ServiceDescriptorProto)>,
}

impl<'a> Declared<'a> {
    fn of(set: &'a FileDescriptorSet) -> Self {
        let mut declared = Declared::default();
        for file in &set.file {
            let package = file.package();
            declared.packages.insert(package);
            for message in &file.message_type {
                declared.add_message(package, package, message);
            }
            for of_file in &file.enum_type {
                declared.add_enum(package, package, of_file);
            }
            for service in &file.service {
                let entry = (package, service);
                declared.services.insert(format!("{package}.{}", service.name()), entry);
            }
        }
        declared
    }

    fn add_message(&mut self, package: &'a str, outer: &str, message: &'a DescriptorProto) {
        let name = format!("{outer}.{}", message.name());
        for nested in &message.nested_type {
            self.add_message(package, &name, nested);
        }
        for nested in &message.enum_type {
            self.add_enum(package, &name, nested);
        }
        self.messages.insert(name, (package, message));
    }

    fn add_enum(&mut self, package: &'a str, outer: &str, of_file: &'a EnumDescriptorProto) {
        let entry = (package, of_file);
        self.enums.insert(format!("{outer}.{}", of_file.name()), entry);
    }
}

fn compare_messages(
    broken: &mut Vec<String>,
    name: &str,
    before: &DescriptorProto,
    after: &DescriptorProto,
) {
    // These ranges end before their end.
    let ranges: Vec<_> =
        after.reserved_range.iter().map(|range| (range.start(), range.end() - 1)).collect();
    let reserved = |number: i32| uncovered(number, number, &ranges).is_none();
    let is_entry = |message: &DescriptorProto| {
        message.options.as_ref().is_some_and(|options| options.map_entry())
    };
    if is_entry(before) != is_entry(after) {
        broken.push(format!("`{name}`: a map became repeated entries, or these a map"));
    }
    for field in &before.field {
        let at = format!("`{name}.{}` ({})", field.name(), field.number());
        if let Some(now) = after.field.iter().find(|now| now.number() == field.number()) {
            compare_fields(broken, &at, (before, field), (after, now));
            continue;
        }
        if let Some(now) = after.field.iter().find(|now| now.name() == field.name()) {
            broken.push(format!("{at}: renumbered to {}", now.number()));
            continue;
        }
        if !reserved(field.number()) {
            broken.push(format!("{at}: removed, and its number is not reserved"));
        }
        if !after.reserved_name.iter().any(|name| name == field.name()) {
            broken.push(format!("{at}: removed, and its name is not reserved"));
        }
    }
    // Or a number of long ago would come back as something else.
    for range in &before.reserved_range {
        if let Some(number) = uncovered(range.start(), range.end() - 1, &ranges) {
            broken.push(format!("`{name}`: {number} is no longer reserved"));
        }
    }
    for word in before.reserved_name.iter().filter(|word| !after.reserved_name.contains(word)) {
        broken.push(format!("`{name}`: the name `{word}` is no longer reserved"));
    }
}

fn compare_fields(
    broken: &mut Vec<String>,
    at: &str,
    (of_before, before): (&DescriptorProto, &FieldDescriptorProto),
    (of_after, after): (&DescriptorProto, &FieldDescriptorProto),
) {
    if before.name() != after.name() {
        broken.push(format!("{at}: renamed to `{}`", after.name()));
    } else if before.json_name() != after.json_name() {
        let (before, after) = (before.json_name(), after.json_name());
        broken.push(format!("{at}: its name in JSON is `{after}`, not `{before}`"));
    }
    let kind = |field: &FieldDescriptorProto| match field.type_name() {
        "" => format!("{:?}", field.r#type()).to_lowercase(),
        name => name.trim_start_matches('.').to_owned(),
    };
    if kind(before) != kind(after) {
        broken.push(format!("{at}: its type is `{}`, not `{}`", kind(after), kind(before)));
    }
    let label = |field: &FieldDescriptorProto| match field.proto3_optional() {
        true => "optional, told apart from its default".to_owned(),
        false => format!("{:?}", field.label()).to_lowercase(),
    };
    if label(before) != label(after) {
        broken.push(format!("{at}: it is {}, not {}", label(after), label(before)));
    }
    let (was, is) = (oneof(of_before, before), oneof(of_after, after));
    if was != is {
        let told = |oneof: Option<&str>| {
            oneof.map_or("in no oneof".to_owned(), |name| format!("in oneof `{name}`"))
        };
        broken.push(format!("{at}: it is {}, not {}", told(is), told(was)));
    }
}

/// Returns the oneof that a field is in, if the schema has it.
fn oneof<'a>(message: &'a DescriptorProto, field: &FieldDescriptorProto) -> Option<&'a str> {
    let index = field.oneof_index.filter(|_| !field.proto3_optional())?;
    message.oneof_decl.get(usize::try_from(index).ok()?).map(|oneof| oneof.name())
}

fn compare_enums(
    broken: &mut Vec<String>,
    name: &str,
    before: &EnumDescriptorProto,
    after: &EnumDescriptorProto,
) {
    let ranges: Vec<_> =
        after.reserved_range.iter().map(|range| (range.start(), range.end())).collect();
    let reserved = |number: i32| uncovered(number, number, &ranges).is_none();
    for value in &before.value {
        let at = format!("`{name}.{}` ({})", value.name(), value.number());
        let same_number = |now: &&EnumValueDescriptorProto| now.number() == value.number();
        let names: Vec<&str> =
            after.value.iter().filter(same_number).map(|now| now.name()).collect();
        let moved = after.value.iter().find(|now| now.name() == value.name());
        match moved {
            _ if names.contains(&value.name()) => {
                let known = |name: &&str| before.value.iter().any(|value| value.name() == *name);
                for alias in names.iter().filter(|name| !known(name)) {
                    // Which of two names is shown is up to whoever reads.
                    broken.push(format!("{at}: events of it may be shown as `{alias}` now"));
                }
            }
            Some(now) => broken.push(format!("{at}: renumbered to {}", now.number())),
            None if !names.is_empty() => {
                broken.push(format!("{at}: renamed to `{}`", names.join("`, `")));
            }
            None => {
                if !reserved(value.number()) {
                    broken.push(format!("{at}: removed, and its number is not reserved"));
                }
                if !after.reserved_name.iter().any(|name| name == value.name()) {
                    broken.push(format!("{at}: removed, and its name is not reserved"));
                }
            }
        }
    }
    for range in &before.reserved_range {
        if let Some(number) = uncovered(range.start(), range.end(), &ranges) {
            broken.push(format!("`{name}`: {number} is no longer reserved"));
        }
    }
    for word in before.reserved_name.iter().filter(|word| !after.reserved_name.contains(word)) {
        broken.push(format!("`{name}`: the name `{word}` is no longer reserved"));
    }
}

fn compare_services(
    broken: &mut Vec<String>,
    name: &str,
    before: &ServiceDescriptorProto,
    after: &ServiceDescriptorProto,
) {
    for method in &before.method {
        let at = format!("`{name}.{}`", method.name());
        let signature = |method: &MethodDescriptorProto| {
            let stream = |is: bool| if is { "stream " } else { "" };
            let (input, output) = (method.input_type(), method.output_type());
            format!(
                "({}{}) returns ({}{})",
                stream(method.client_streaming()),
                input.trim_start_matches('.'),
                stream(method.server_streaming()),
                output.trim_start_matches('.')
            )
        };
        match after.method.iter().find(|now| now.name() == method.name()) {
            None => broken.push(format!("{at}: removed")),
            Some(now) if signature(now) != signature(method) => {
                broken.push(format!("{at}: it is {}, not {}", signature(now), signature(method)));
            }
            Some(_) => {}
        }
    }
}

#[test]
fn each_rule_fires_and_what_is_fine_passes() {
    const MESSAGE: &str = "message M { string a = 1; int64 b = 2; }";
    // What is fine.
    check(MESSAGE, MESSAGE, &[]);
    check(MESSAGE, "message N {} message M { string a = 1; int64 b = 2; bool c = 3; }", &[]);
    check(MESSAGE, "message M { reserved 2; reserved \"b\"; string a = 1; }", &[]);
    check("enum E { X = 0; }", "enum E { X = 0; Y = 1; }", &[]);
    check("enum E { X = 0; Y = 1; }", "enum E { reserved 1; reserved \"Y\"; X = 0; }", &[]);
    check("service S {}", "message M {} service S { rpc R(M) returns (M); }", &[]);
    // Fields.
    check(
        MESSAGE,
        "message M { string a = 1; }",
        &[
            "`p.v1.M.b` (2): removed, and its number is not reserved",
            "`p.v1.M.b` (2): removed, and its name is not reserved",
        ],
    );
    check(
        MESSAGE,
        "message M { reserved 2; string a = 1; }",
        &["`p.v1.M.b` (2): removed, and its name is not reserved"],
    );
    check(
        MESSAGE,
        "message M { reserved \"b\"; string a = 1; }",
        &["`p.v1.M.b` (2): removed, and its number is not reserved"],
    );
    check(
        MESSAGE,
        "message M { string a = 1; int64 b = 3; }",
        &["`p.v1.M.b` (2): renumbered to 3"],
    );
    check(MESSAGE, "message M { string a = 1; int64 c = 2; }", &["`p.v1.M.b` (2): renamed to `c`"]);
    check(
        MESSAGE,
        "message M { string a = 1; int64 b = 2 [json_name = \"bee\"]; }",
        &["`p.v1.M.b` (2): its name in JSON is `bee`, not `b`"],
    );
    check(
        MESSAGE,
        "message M { string a = 1; sint64 b = 2; }",
        &["`p.v1.M.b` (2): its type is `sint64`, not `int64`"],
    );
    check(
        "message A {} message B {} message M { A a = 1; }",
        "message A {} message B {} message M { B a = 1; }",
        &["`p.v1.M.a` (1): its type is `p.v1.B`, not `p.v1.A`"],
    );
    check(
        MESSAGE,
        "message M { repeated string a = 1; optional int64 b = 2; }",
        &[
            "`p.v1.M.a` (1): it is repeated, not optional",
            "`p.v1.M.b` (2): it is optional, told apart from its default, not optional",
        ],
    );
    check(
        MESSAGE,
        "message M { string a = 1; oneof o { int64 b = 2; } }",
        &["`p.v1.M.b` (2): it is in oneof `o`, not in no oneof"],
    );
    check(
        "message M { oneof o { int64 b = 2; } }",
        "message M { oneof other { int64 b = 2; } }",
        &["`p.v1.M.b` (2): it is in oneof `other`, not in oneof `o`"],
    );
    check(
        "message M { map<string, int32> m = 1; }",
        "message M { map<string, int64> m = 1; }",
        &["`p.v1.M.MEntry.value` (2): its type is `int64`, not `int32`"],
    );
    check(
        "message M { reserved 2, 5 to 7; reserved \"b\"; }",
        "message M { reserved 2, 5 to 6; }",
        &["`p.v1.M`: 7 is no longer reserved", "`p.v1.M`: the name `b` is no longer reserved"],
    );
    check(
        "message M { reserved 5 to max; }",
        "message M { reserved 5 to 20000; }",
        &["`p.v1.M`: 20001 is no longer reserved"],
    );
    check(
        "message M { map<string, int32> m = 1; }",
        "message M { message MEntry { string key = 1; int32 value = 2; } repeated MEntry m = 1; }",
        &["`p.v1.M.MEntry`: a map became repeated entries, or these a map"],
    );
    // Enums.
    check(
        "enum E { reserved 3 to 7; X = 0; }",
        "enum E { reserved 3, 7; X = 0; }",
        &["`p.v1.E`: 4 is no longer reserved"],
    );
    check(
        "enum E { X = 0; Y = 1; }",
        "enum E { option allow_alias = true; X = 0; Y = 1; Z = 1; }",
        &["`p.v1.E.Y` (1): events of it may be shown as `Z` now"],
    );
    check(
        "enum E { X = 0; Y = 1; }",
        "enum E { X = 0; }",
        &[
            "`p.v1.E.Y` (1): removed, and its number is not reserved",
            "`p.v1.E.Y` (1): removed, and its name is not reserved",
        ],
    );
    check(
        "enum E { X = 0; Y = 1; }",
        "enum E { X = 0; Z = 1; }",
        &["`p.v1.E.Y` (1): renamed to `Z`"],
    );
    check(
        "enum E { X = 0; Y = 1; }",
        "enum E { X = 0; Y = 2; }",
        &["`p.v1.E.Y` (1): renumbered to 2"],
    );
    check(
        "enum E { reserved 3; reserved \"Q\"; X = 0; }",
        "enum E { X = 0; }",
        &["`p.v1.E`: 3 is no longer reserved", "`p.v1.E`: the name `Q` is no longer reserved"],
    );
    // Whole declarations, nested ones too.
    check(
        "message M { message N {} enum E { X = 0; } } message O {}",
        "message M {}",
        &[
            "message `p.v1.M.N` is gone from package `p.v1`",
            "message `p.v1.O` is gone from package `p.v1`",
            "enum `p.v1.M.E` is gone from package `p.v1`",
        ],
    );
    check(
        "message M {} service S { rpc R(M) returns (M); rpc T(M) returns (M); }",
        "message M {} service S { rpc R(stream M) returns (M); }",
        &[
            "`p.v1.S.R`: it is (stream p.v1.M) returns (p.v1.M), not (p.v1.M) returns (p.v1.M)",
            "`p.v1.S.T`: removed",
        ],
    );
    check("service S {}", "", &["service `p.v1.S` is gone from package `p.v1`"]);
}

#[test]
fn a_new_version_of_a_package_is_fine_and_one_that_is_gone_is_not() {
    let (v1, v2) = (("p.v1", "message M { string a = 1; }"), ("p.v2", "message M { bool a = 1; }"));
    assert_eq!(breaking(&compile(&[v1]), &compile(&[v1, v2])), [""; 0]);
    assert_eq!(breaking(&compile(&[v1, v2]), &compile(&[v2])), ["package `p.v1` is gone"]);
}

#[test]
fn what_is_not_proto3_is_refused() {
    let mut after = compile(&[("p.v1", "message M {}")]);
    after.file[0].syntax = None;
    let told = ["`p.v1.proto`: it is not proto3, and these rules are for that"];
    assert_eq!(breaking(&compile(&[("p.v1", "message M {}")]), &after), told);
}

#[track_caller]
fn check(before: &str, after: &str, expected: &[&str]) {
    let found = breaking(&compile(&[("p.v1", before)]), &compile(&[("p.v1", after)]));
    assert_eq!(found, expected, "{before} → {after}");
}

/// Compiles files of one package each.
fn compile(packages: &[(&str, &str)]) -> FileDescriptorSet {
    let folder = tempfile::tempdir().expect("a folder for small schemas");
    let files: Vec<_> = packages
        .iter()
        .map(|(package, text)| {
            let file = folder.path().join(format!("{package}.proto"));
            let text = format!("syntax = \"proto3\";\npackage {package};\n{text}\n");
            std::fs::write(&file, text).expect("the folder is ours");
            file
        })
        .collect();
    protox::compile(files, [folder.path()]).expect("a small schema compiles")
}
