//! The modules of a crate, and which uses which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, Item, UseTree};

/// A module, as the names that lead to it from the crate's root.
type Module = Vec<String>;

/// What each module of the library in `directory` uses.
pub fn read(directory: &Path) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let mut found = Found::default();
    let root = directory.join("src/lib.rs");
    found.file(Vec::new(), &root, &directory.join("src"))?;
    let modules: BTreeSet<Module> = found.0.iter().map(|(module, _)| module.clone()).collect();
    let mut uses = BTreeMap::new();
    for (module, items) in &found.0 {
        let mut paths = Paths { module, modules: &modules, used: BTreeSet::new() };
        items.iter().for_each(|item| paths.visit_item(item));
        uses.insert(name(module), paths.used);
    }
    Ok(uses)
}

fn name(module: &[String]) -> String {
    if module.is_empty() { "crate".to_owned() } else { module.join("::") }
}

/// All modules, each with its items.
#[derive(Default)]
struct Found(Vec<(Module, Vec<Item>)>);

impl Found {
    /// The module in `path`, whose children's files lie in `children`.
    fn file(&mut self, module: Module, path: &Path, children: &Path) -> Result<(), String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let file = syn::parse_file(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        self.items(module, file.items, children)
    }

    fn items(&mut self, module: Module, items: Vec<Item>, children: &Path) -> Result<(), String> {
        let mut own = Vec::new();
        for item in items {
            let Item::Mod(child) = item else {
                own.push(item);
                continue;
            };
            if is_for_tests(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let below = children.join(&name);
            let child_module = [&module[..], &[name]].concat();
            match child.content {
                Some((_, items)) => self.items(child_module, items, &below)?,
                None => self.file(child_module, &file_of(&below), &below)?,
            }
        }
        self.0.push((module, own));
        Ok(())
    }
}

fn file_of(below: &Path) -> PathBuf {
    let beside = below.with_extension("rs");
    if beside.exists() { beside } else { below.join("mod.rs") }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    };
    attributes.iter().any(is_test)
}

/// Looks for paths in the items of `module`.
struct Paths<'a> {
    module: &'a Module,
    modules: &'a BTreeSet<Module>,
    used: BTreeSet<String>,
}

impl Paths<'_> {
    /// Notes the module that `path` leads to, if it is one of this crate.
    fn note(&mut self, path: &[String]) {
        let mut at = self.module.clone();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => (at, rest) = (Vec::new(), &path[1..]),
            Some("self") => rest = &path[1..],
            Some("super") => {
                while rest.first().is_some_and(|first| first == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            // A child's name, or one from outside. Alone it is a value's.
            Some(first)
                if path.len() > 1 && self.modules.contains(&[&at[..], &[first.to_owned()]].concat()) => {}
            _ => return,
        }
        for segment in rest {
            at.push(segment.clone());
            if !self.modules.contains(&at) {
                at.pop();
                break;
            }
        }
        if at != *self.module {
            self.used.insert(name(&at));
        }
    }

    fn tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&path.tree, &with(&path.ident)),
            UseTree::Name(leaf) => self.note(&with(&leaf.ident)),
            UseTree::Rename(leaf) => self.note(&with(&leaf.ident)),
            UseTree::Glob(_) => self.note(&[before, &["*".to_owned()]].concat()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
        }
    }

    /// Paths in what is handed to a macro, which is no syntax yet.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut goes_on = false;
        for token in tokens {
            let is_colon = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ':');
            if !is_colon && !goes_on {
                self.note(&std::mem::take(&mut path));
            }
            match token {
                TokenTree::Ident(ident) => path.push(ident.to_string()),
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
            goes_on = is_colon;
        }
        self.note(&path);
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_for_tests(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&item.tree, &[]);
    }

    /// Visibility names who may use an item, and is no use itself.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.note(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>());
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.visit_path(&called.path);
        self.tokens(called.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the modules of a crate with these files use.
    fn uses(files: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join("src").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let uses = read(directory.path()).unwrap();
        uses.into_iter().map(|(module, used)| (module, used.into_iter().collect())).collect()
    }

    fn one(text: &str) -> Vec<String> {
        let files = [("lib.rs", "mod a; mod b;"), ("a.rs", text), ("b/mod.rs", "pub mod c;"), ("b/c.rs", "")];
        uses(&files).into_iter().find(|(module, _)| module == "a").unwrap().1
    }

    #[test]
    fn a_path_of_any_kind_is_a_use() {
        for text in [
            "use crate::b::c::D;",
            "use super::b::c;",
            "use crate::{b::c::{self, D}};",
            "use super::b::c::*;",
            "fn f() -> Option<crate::b::c::D> { None }",
            "fn f() { super::b::c::g::<u8>(); }",
            "fn f() { assert!(x && crate::b::c::g(1)); }",
            "mod d { fn f() { super::g() } } use crate::b::c as d;",
        ] {
            assert_eq!(one(text), ["b::c"], "{text}");
        }
        assert_eq!(one("use crate::{b::D, b::c};"), ["b", "b::c"]);
        assert_eq!(one("use crate::Root;"), ["crate"]);
    }

    #[test]
    fn what_only_tests_see_and_what_is_from_outside_is_none() {
        for text in [
            "#[cfg(test)] mod tests { use crate::b::c; }",
            "#[cfg(test)] use crate::b::c;",
            "#[test] fn f() { crate::b::c::g() }",
            "pub(crate) struct A; impl A { pub(super) fn f() {} }",
            "use std::fs; use b::D; fn f() { c::g() }",
            "/// [`crate::b`]\nfn f() {}",
        ] {
            assert_eq!(one(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_parent_uses_the_children_that_it_names_and_they_use_it() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a.rs", "mod b; mod c; use b::*; struct A; fn f(c: u8) -> u8 { c }"),
            ("a/b.rs", "use super::A; use super::c::C;"),
            ("a/c.rs", ""),
        ];
        let used = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            uses(&files),
            [
                ("a".to_owned(), used(&["a::b"])),
                ("a::b".to_owned(), used(&["a", "a::c"])),
                ("a::c".to_owned(), used(&[])),
                ("crate".to_owned(), used(&[])),
            ]
        );
    }
}
