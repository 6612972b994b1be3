//! What one evaluation may cost: the tree is given calls that count steps, and an evaluation
//! that is out of steps fails.
//!
//! `cel` has no budget of its own, and its time is the product of the lengths of the lists that
//! nested loops go over, times what each comparison or copy in them touches. So every round of a
//! loop counts the nodes it evaluates, and every operand whose size decides what an operation
//! takes is counted before the operation, more for one that is copied. Results of operations are
//! not counted again: what they hold was counted with their operands.
//!
//! Once out of steps, every further count fails, so that whatever swallows errors (`||`, `&&`,
//! `exists`) ends as fast; the caller asks [`overdrawn`] before it believes a result.

use std::cell::Cell;

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::{
    CelBytes, CelDouble, CelInt, CelList, CelMap, CelOptional, CelString, DYN_TYPE, INT_TYPE, Kind,
};
use cel::common::value::{CowVal, Val};
use cel::{Env, ExecutionError};

/// The most steps of one evaluation; a step is a node evaluated, or a value or 64 bytes looked at.
/// About a second on a core of 2024: a hundred thousand times what an ordinary expression takes on
/// a body of 4 KiB, and enough to hold each of 1,000 elements against each of 1,000 others.
const STEPS_MAX: u64 = 25_000_000;

/// Bytes of a text that are looked at in a step.
const BYTES_A_STEP: u64 = 64;

/// How much more a copy counts than a look, which is what bounds memory: [`STEPS_MAX`] are 780,000
/// values of some 100 bytes, or 50 MB of text.
const COPY_WEIGHT: u64 = 32;

/// Counts a value that is looked at; nobody can type these names.
const LOOK: &str = "@look";
/// Counts a value that is copied.
const COPY: &str = "@copy";
/// Counts nothing, but lets only what is a key through as one.
const KEY: &str = "@key";

thread_local! {
    /// Steps that the evaluation on this thread has left; none once it is overdrawn.
    static LEFT: Cell<Option<u64>> = const { Cell::new(Some(STEPS_MAX)) };
}

/// Begins an evaluation on this thread.
pub(super) fn begin() {
    LEFT.set(Some(STEPS_MAX));
}

/// Returns whether the evaluation took more than [`STEPS_MAX`]: then its result means nothing.
pub(super) fn overdrawn() -> bool {
    LEFT.get().is_none()
}

/// Takes steps off what is left.
///
/// # Errors
/// That many are not left; from then on every take fails.
pub(super) fn take(steps: u64) -> Result<(), ExecutionError> {
    let left = LEFT.get().and_then(|left| left.checked_sub(steps));
    LEFT.set(left);
    match left {
        Some(_) => Ok(()),
        None => Err(ExecutionError::function_error("where", too_many())),
    }
}

/// Says that an evaluation took too long, and what to do.
pub(super) fn too_many() -> String {
    format!(
        "it takes more than {STEPS_MAX} steps on this event; loop over shorter lists, or leave such events out with flags or --where-errors skip"
    )
}

/// Declares the functions that count.
pub(super) fn declare(env: &mut Env) {
    let two = || vec![DYN_TYPE, INT_TYPE];
    env.add_overload(LOOK, "look", two(), look).expect("nothing else has this name");
    env.add_overload(COPY, "copy", two(), copy).expect("nothing else has this name");
    env.add_overload(KEY, "key", vec![DYN_TYPE], key).expect("nothing else has this name");
}

fn look<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    counted(arguments, 1)
}

fn copy<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    counted(arguments, COPY_WEIGHT)
}

/// Hands the first argument on once it is counted, and as many steps as the second says.
fn counted<'b, 'v>(
    arguments: Vec<CowVal<'b, 'v>>,
    weight: u64,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let mut arguments = arguments.into_iter();
    let missing = ExecutionError::missing_argument_or_target;
    let value = arguments.next().ok_or_else(missing)?;
    let steps = arguments.next().ok_or_else(missing)?;
    let steps = steps.downcast_ref::<CelInt>().map_or(0, |steps| steps.inner().unsigned_abs());
    take(steps)?;
    count(value.as_ref(), weight)?;
    Ok(value)
}

/// Takes off what a value holds, all its depth, and ends as soon as nothing is left.
fn count(value: &dyn Val, weight: u64) -> Result<(), ExecutionError> {
    let text = |bytes: usize| (bytes as u64).saturating_mul(weight) / BYTES_A_STEP;
    if let Some(string) = value.downcast_ref::<CelString<'_>>() {
        return take(weight + text(string.inner().len()));
    }
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        take(weight)?;
        return list.inner().iter().try_for_each(|element| count(element.as_ref(), weight));
    }
    if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        take(weight)?;
        return map.inner().iter().try_for_each(|(key, element)| {
            count(key.inner(), weight)?;
            count(element.as_ref(), weight)
        });
    }
    if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
        return take(weight + text(bytes.inner().len()));
    }
    match value.downcast_ref::<CelOptional<'_>>().and_then(CelOptional::inner) {
        Some(inner) => count(inner, weight),
        None => take(weight),
    }
}

/// Lets an index through that can be one. For others `cel` copies the list into its complaint.
fn key<'b, 'v>(mut arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = arguments.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
    let refused = |what: &str| Err(ExecutionError::function_error("[…]", what));
    match value.get_type().kind() {
        Kind::Boolean | Kind::Int | Kind::UInt => Ok(value),
        Kind::String => count(value.as_ref(), COPY_WEIGHT).map(|()| value),
        Kind::Double => match value.downcast_ref::<CelDouble>() {
            Some(number) if number.inner().fract() == 0.0 => Ok(value),
            _ => refused("a number with a fraction is no place in a list"),
        },
        _ => refused(&format!(
            "a {} is neither a place in a list nor a name",
            value.get_type().name()
        )),
    }
}

/// Puts the calls that count into a tree.
pub(super) fn install(expression: &mut IdedExpr) {
    visit(expression);
}

fn visit(node: &mut IdedExpr) {
    match &mut node.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => {}
        Expr::Select(select) => visit(&mut select.operand),
        Expr::List(list) => list.elements.iter_mut().for_each(|element| {
            visit(element);
            wrap(element, COPY, 0);
        }),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| visit_entry(&mut entry.expr)),
        Expr::Struct(of) => of.entries.iter_mut().for_each(|entry| visit_entry(&mut entry.expr)),
        Expr::Call(call) => visit_call(call),
        Expr::Comprehension(of) => {
            for part in [&mut of.iter_range, &mut of.accu_init] {
                visit(part);
            }
            wrap(&mut of.iter_range, LOOK, 0);
            wrap(&mut of.accu_init, COPY, 0);
            let nodes = 1 + nodes(&of.loop_cond) + nodes(&of.loop_step);
            visit(&mut of.loop_step);
            visit(&mut of.result);
            if !matches!(&of.result.expr, Expr::Ident(name) if *name == of.accu_var) {
                wrap(&mut of.result, COPY, 0);
            }
            // `cel` appends in place for `map` and `filter` while it recognises them: by a
            // condition that is a literal, and a step that adds a list to the accumulator. An
            // error ends such a loop, so that counting behind its first operand is enough.
            // Others go on after an error, and count before each round.
            if matches!(&of.accu_init.expr, Expr::List(list) if list.elements.is_empty()) {
                count_in_step(&mut of.loop_step, nodes);
            } else {
                let condition = std::mem::take(&mut of.loop_cond);
                let counted = call(LOOK, vec![truth(true), number(nodes)]);
                of.loop_cond = call(operators::CONDITIONAL, vec![counted, condition, truth(false)]);
            }
        }
    }
}

fn visit_entry(entry: &mut EntryExpr) {
    let parts = match entry {
        EntryExpr::StructField(field) => vec![&mut field.value],
        EntryExpr::MapEntry(entry) => vec![&mut entry.key, &mut entry.value],
    };
    for part in parts {
        visit(part);
        wrap(part, COPY, 0);
    }
}

fn visit_call(call: &mut CallExpr) {
    if let Some(target) = call.target.as_deref_mut() {
        visit(target);
    }
    call.args.iter_mut().for_each(visit);
    let literal = |node: &IdedExpr| matches!(node.expr, Expr::Literal(_));
    match (call.func_name.as_str(), call.args.as_mut_slice()) {
        (
            operators::CONDITIONAL
            | operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::NEGATE
            | operators::NOT_STRICTLY_FALSE,
            _,
        ) => {}
        (operators::INDEX, [_, index]) => match &index.expr {
            Expr::Literal(LiteralValue::String(_) | LiteralValue::Int(_)) => {}
            _ => take_as_key(index),
        },
        (operators::OPT_INDEX, [of, index]) => {
            wrap(of, COPY, 0);
            take_as_key(index);
        }
        (operators::ADD | operators::OPT_SELECT, operands) => {
            operands.iter_mut().for_each(|operand| wrap(operand, COPY, 0));
        }
        // What is compared with a literal is looked at no further than the literal goes.
        (
            operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS,
            [one, other],
        ) if literal(one) || literal(other) => {}
        (operators::IN, [_, IdedExpr { expr: Expr::List(list), .. }])
            if list.elements.iter().all(literal) => {}
        ("startsWith" | "endsWith", [of]) if literal(of) => {}
        // Counts for itself.
        (super::regexes::MATCHES, _) => {}
        // The same for functions: the size of a list is known without looking into it.
        ("size", operands) => {
            let target = call.target.as_deref_mut();
            target.into_iter().chain(operands).for_each(|of| wrap(of, LOOK, 0));
        }
        ("bytes" | "string" | "dyn" | "of" | "ofNonZeroValue", operands) => {
            let target = call.target.as_deref_mut().filter(|target| !is_namespace(target));
            target.into_iter().chain(operands).for_each(|of| wrap(of, COPY, 0));
        }
        (_, operands) => {
            let target = call.target.as_deref_mut().filter(|target| !is_namespace(target));
            target.into_iter().chain(operands).for_each(|of| wrap(of, LOOK, 0));
        }
    }
}

/// Returns whether this is the first half of a function's name: `optional` in `optional.of`.
fn is_namespace(target: &IdedExpr) -> bool {
    matches!(&target.expr, Expr::Ident(name) if name == "optional")
}

/// Counts a round of `map` or `filter` in the first part of its step that is evaluated.
fn count_in_step(step: &mut IdedExpr, nodes: u64) {
    let Expr::Call(CallExpr { func_name, args, .. }) = &mut step.expr else { return };
    let first = match (func_name.as_str(), args.as_mut_slice()) {
        (operators::CONDITIONAL, [guard, ..]) => guard,
        (_, [_, IdedExpr { expr: Expr::List(list), .. }]) => match list.elements.first_mut() {
            Some(element) => element,
            None => return,
        },
        _ => return,
    };
    let inner = std::mem::take(first);
    *first = call(LOOK, vec![inner, number(nodes)]);
}

/// Wraps a node in a call that counts it, if its value was not counted where it was made.
fn wrap(node: &mut IdedExpr, function: &str, steps: u64) {
    let counted = match &node.expr {
        Expr::Ident(_) | Expr::Select(_) | Expr::Comprehension(_) => false,
        Expr::Call(call) => !matches!(
            call.func_name.as_str(),
            operators::CONDITIONAL
                | operators::INDEX
                | operators::OPT_INDEX
                | operators::OPT_SELECT
                | "value"
                | "orValue"
                | "or"
        ),
        _ => true,
    };
    if !counted {
        let inner = std::mem::take(node);
        *node = call(function, vec![inner, number(steps)]);
    }
}

fn take_as_key(index: &mut IdedExpr) {
    let inner = std::mem::take(index);
    *index = call(KEY, vec![inner]);
}

/// Returns how many nodes a round evaluates, but for those of loops within, which count theirs.
fn nodes(node: &IdedExpr) -> u64 {
    let children = match &node.expr {
        Expr::Comprehension(of) => vec![&of.iter_range, &of.accu_init, &of.result],
        _ => super::tree::children(node),
    };
    1 + children.into_iter().map(nodes).sum::<u64>()
}

fn call(function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    node(Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }))
}

fn truth(truth: bool) -> IdedExpr {
    node(Expr::Literal(LiteralValue::Boolean(truth.into())))
}

fn number(number: u64) -> IdedExpr {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    node(Expr::Literal(LiteralValue::Int(number.into())))
}

/// Ids matter only for places in the source, which are looked up before.
fn node(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}
