//! What can be told of an expression from its tree alone.

use std::collections::BTreeSet;

use cel::Env;
use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};

use super::{VARIABLES, at, regexes, whole};
use crate::FilterError;

/// The functions of CEL's standard library that expressions may call. Macros (`has`, `all`,
/// `exists`, `existsOne`, `map`, `filter`, `optMap`, `optFlatMap`) are gone once parsed.
pub(super) const FUNCTIONS: [&str; 32] = [
    "bool",
    "bytes",
    "contains",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "hasValue",
    "int",
    "matches",
    "optional.none",
    "optional.of",
    "optional.ofNonZeroValue",
    "or",
    "orValue",
    "size",
    "startsWith",
    "string",
    "timestamp",
    "type",
    "uint",
    "value",
];

/// How deep `all`, `exists`, `map` and `filter` may nest: each multiplies the time that one event
/// takes by the length of a list.
const LOOPS_NESTED_MAX: usize = 3;

/// Checks every name, prepares regular expressions, and returns the variables looked at.
///
/// # Errors
/// An unknown variable, function or type, a bad regular expression, or loops nested too deep.
pub(super) fn check(
    env: &Env,
    source: &str,
    places: &SourceInfo,
    expression: &mut IdedExpr,
) -> Result<BTreeSet<String>, FilterError> {
    let mut checker =
        Checker { env, source, places, bound: Vec::new(), loops: 0, free: BTreeSet::new() };
    checker.visit(expression)?;
    Ok(checker.free)
}

/// Returns the parts joined by `&&` that do not mention `variable`.
pub(super) fn parts_without(expression: &IdedExpr, variable: &str) -> Vec<IdedExpr> {
    if let Expr::Call(call) = &expression.expr
        && call.func_name == operators::LOGICAL_AND
    {
        return call.args.iter().flat_map(|part| parts_without(part, variable)).collect();
    }
    if variables(expression).contains(variable) { Vec::new() } else { vec![expression.clone()] }
}

/// Returns the variables mentioned, also those that a loop names.
pub(super) fn variables(expression: &IdedExpr) -> BTreeSet<String> {
    let root = |name: &str| name.strip_prefix('.').unwrap_or(name).to_owned();
    expression.references().variables().into_iter().map(root).collect()
}

/// Returns how deep the tree is.
pub(super) fn nesting(expression: &IdedExpr) -> usize {
    1 + children(expression).into_iter().map(nesting).max().unwrap_or(0)
}

/// Returns the nodes right below one.
pub(super) fn children(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(of) => {
            vec![&of.iter_range, &of.accu_init, &of.loop_cond, &of.loop_step, &of.result]
        }
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| of_entry(&entry.expr)).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Struct(of) => of.entries.iter().flat_map(|entry| of_entry(&entry.expr)).collect(),
    }
}

fn of_entry(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

struct Checker<'a> {
    env: &'a Env,
    source: &'a str,
    places: &'a SourceInfo,
    /// Names that the loops around this place have given.
    bound: Vec<String>,
    loops: usize,
    free: BTreeSet<String>,
}

impl Checker<'_> {
    fn visit(&mut self, node: &mut IdedExpr) -> Result<(), FilterError> {
        let id = node.id;
        match &mut node.expr {
            Expr::Unspecified => Err(whole("it is not a CEL expression")),
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.variable(id, name),
            Expr::Select(select) => self.visit(&mut select.operand),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|node| self.visit(node)),
            Expr::Map(map) => {
                map.entries.iter_mut().try_for_each(|entry| self.entry(&mut entry.expr))
            }
            Expr::Struct(of) => {
                Err(self.mistake(id, format!("there is no type `{}` to build", of.type_name)))
            }
            Expr::Call(call) => {
                let mut name = call.func_name.clone();
                match call.target.as_deref_mut() {
                    Some(IdedExpr { expr: Expr::Ident(space), .. }) if space == "optional" => {
                        name = format!("optional.{name}");
                    }
                    Some(target) => self.visit(target)?,
                    None => {}
                }
                self.function(id, &name)?;
                if name == "matches" {
                    if let Some(IdedExpr {
                        id,
                        expr: Expr::Literal(LiteralValue::String(pattern)),
                    }) = call.args.last()
                    {
                        regexes::check(pattern.inner()).map_err(|reason| {
                            self.mistake(*id, format!("not a regular expression: {reason}"))
                        })?;
                    }
                    call.func_name = regexes::MATCHES.to_owned();
                }
                call.args.iter_mut().try_for_each(|node| self.visit(node))
            }
            Expr::Comprehension(of) => {
                self.visit(&mut of.iter_range)?;
                self.visit(&mut of.accu_init)?;
                if self.loops == LOOPS_NESTED_MAX {
                    let reason = format!(
                        "`all`, `exists`, `map` and `filter` nest at most {LOOPS_NESTED_MAX} deep"
                    );
                    return Err(self.mistake(id, reason));
                }
                let bound_before = self.bound.len();
                self.loops += 1;
                self.bound.push(of.accu_var.clone());
                self.visit(&mut of.result)?;
                self.bound.push(of.iter_var.clone());
                self.bound.extend(of.iter_var2.clone());
                self.visit(&mut of.loop_cond)?;
                self.visit(&mut of.loop_step)?;
                self.loops -= 1;
                self.bound.truncate(bound_before);
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: &mut EntryExpr) -> Result<(), FilterError> {
        match entry {
            EntryExpr::StructField(field) => self.visit(&mut field.value),
            EntryExpr::MapEntry(entry) => {
                self.visit(&mut entry.key)?;
                self.visit(&mut entry.value)
            }
        }
    }

    fn variable(&mut self, id: u64, name: &str) -> Result<(), FilterError> {
        if self.bound.iter().any(|bound| bound == name) {
            return Ok(());
        }
        let name = name.strip_prefix('.').unwrap_or(name);
        if VARIABLES.contains(&name) {
            self.free.insert(name.to_owned());
            return Ok(());
        }
        if self.env.types().find_type(name).is_some() {
            return Ok(());
        }
        let known = VARIABLES.map(|name| format!("`{name}`")).join(", ");
        Err(self.mistake(id, format!("there is no variable `{name}`; there are {known}")))
    }

    fn function(&self, id: u64, name: &str) -> Result<(), FilterError> {
        // Operators have names that nobody can type: `_+_`, `!_`, `@in`.
        let operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        if operator || FUNCTIONS.contains(&name) {
            return Ok(());
        }
        Err(self.mistake(id, format!("there is no function `{name}`")))
    }

    /// An error that points at where the node was written.
    fn mistake(&self, id: u64, reason: impl Into<String>) -> FilterError {
        let offset = self.places.offset_for(id).map_or(0, |(start, _)| start as usize);
        let before = self.source.get(..offset).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        at(self.source, line, column, reason)
    }
}
