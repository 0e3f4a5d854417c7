//! `#[derive(Inputs)]`: a struct's fields as a node's inputs.
//!
//! The derive only writes down what the fields say; all reading and checking is in the SDK's `input`.
//!
//! On the struct, `#[node(…)]`: `class = "KSampler"` (the struct's name otherwise), `category =
//! "sampling"`, `output_node`, `impure`, `checked` (it reads no more than headers, and
//! `kosmograph check` runs it), `input_is_list` (its fields are `List`s and options of them), `writes = "output"` (or `"temp"`, the host's folder that the node
//! writes files to), `memory = [0.25, width, height]` (the bytes that the outputs take at least, a product
//! of numbers and fields; node.h says what the host does with both). On a field:
//! - `#[widget(…)]`: `default`, `min`, `max`, `step`, `choices` (a list of strings), `multiline`, `seed`,
//!   `files` (of choices: a map from a choice to the files that it may need, as FOLDER/NAME),
//!   `mentions` (the folder whose files the text may name, "embeddings"), `prefix` (the text begins the
//!   names of the files that the node writes);
//! - `#[file(…)]`: `folder = "checkpoints"`, `entry = "file" | "directory" | "any"`, `default`,
//!   `none` (the word that stands for no file, of an optional one), `extensions = ["latent"]` (of the files
//!   that are offered).
//!
//! Doc comments become the documentation of the node and its inputs.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::{
    Attribute, Data, DeriveInput, Expr, ExprArray, ExprLit, Field, Fields, Lit, LitStr, Meta,
    parse_macro_input,
};

#[proc_macro_derive(Inputs, attributes(node, widget, file))]
pub fn derive_inputs(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

fn expand(input: &DeriveInput) -> syn::Result<Tokens> {
    let fields = match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => fields.named.iter().collect(),
            Fields::Unit => Vec::new(),
            Fields::Unnamed(_) => return Err(unnamed(input)),
        },
        _ => return Err(unnamed(input)),
    };
    let class = class(input, &fields)?;
    let declarations =
        fields.iter().map(|field| declaration(field)).collect::<Result<Vec<_>, _>>()?;
    let names = fields.iter().map(|field| &field.ident);
    let ident = &input.ident;
    Ok(quote! {
        impl ::node::Inputs for #ident {
            const CLASS: ::node::Class = #class;

            fn specs() -> ::std::vec::Vec<::node::InputSpec> {
                let mut specs = ::std::vec::Vec::new();
                #(specs.extend(#declarations);)*
                specs
            }

            #[allow(unused_variables, reason = "a node may have no inputs")]
            fn read(reader: &mut ::node::Reader<'_>) -> ::node::Result<Self> {
                // The fields are read in the order in which they are declared.
                ::core::result::Result::Ok(Self { #(#names: reader.read()?),* })
            }
        }
    })
}

fn unnamed(input: &DeriveInput) -> syn::Error {
    let what = "a node's inputs are the named fields of a struct";
    syn::Error::new_spanned(&input.ident, what)
}

fn class(input: &DeriveInput, fields: &[&Field]) -> syn::Result<Tokens> {
    let mut name = input.ident.to_string();
    let mut category = String::new();
    let mut memory = Vec::new();
    let (mut output_node, mut pure, mut input_is_list) = (false, true, false);
    let mut checked = false;
    let mut writes = quote!(::core::option::Option::None);
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("node")) {
        attribute.parse_nested_meta(|meta| {
            match key(&meta)?.as_str() {
                "class" => name = meta.value()?.parse::<LitStr>()?.value(),
                "category" => category = meta.value()?.parse::<LitStr>()?.value(),
                "output_node" => output_node = true,
                "impure" => pure = false,
                "input_is_list" => input_is_list = true,
                "checked" => checked = true,
                "writes" => {
                    let folder = meta.value()?.parse::<LitStr>()?;
                    writes = quote!(::core::option::Option::Some(#folder));
                }
                "memory" => {
                    let factors = meta.value()?.parse::<ExprArray>()?.elems;
                    for factor in factors {
                        memory.push(self::factor(&factor, fields)?);
                    }
                }
                _ => {
                    let wanted =
                        "class, category, output_node, impure, checked, input_is_list, writes or memory is wanted";
                    return Err(meta.error(wanted));
                }
            }
            Ok(())
        })?;
    }
    let doc = doc(&input.attrs);
    Ok(quote! {
        ::node::Class {
            name: #name,
            doc: #doc,
            category: #category,
            output_node: #output_node,
            pure: #pure,
            input_is_list: #input_is_list,
            checked: #checked,
            writes: #writes,
            memory: &[#(#memory),*],
        }
    })
}

/// A number of `memory`, or the name of one of `fields` there.
fn factor(factor: &Expr, fields: &[&Field]) -> syn::Result<Tokens> {
    match factor {
        Expr::Lit(ExprLit { lit: Lit::Float(_) | Lit::Int(_), .. }) => {
            Ok(quote!(::node::Factor::Number(#factor as f64)))
        }
        Expr::Path(path)
            if fields.iter().any(|field| path.path.get_ident() == field.ident.as_ref()) =>
        {
            let name = path.path.get_ident().map(ToString::to_string).unwrap_or_default();
            let name = name.trim_start_matches("r#");
            Ok(quote!(::node::Factor::Input(#name)))
        }
        _ => Err(syn::Error::new_spanned(factor, "a number or a field of this struct is wanted")),
    }
}

/// The specs of one field, as an expression.
fn declaration(field: &Field) -> syn::Result<Tokens> {
    // `unwrap_or_default` never strikes: `expand` takes named fields only.
    let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
    let name = name.trim_start_matches("r#");
    let kind = &field.ty;
    let mut spec = quote!(::node::InputSpec::new(#name));
    let doc = doc(&field.attrs);
    if !doc.is_empty() {
        spec = quote!(#spec.set("doc", #doc));
    }
    for attribute in &field.attrs {
        let keys: &[&str] = if attribute.path().is_ident("widget") {
            &["default", "min", "max", "step", "choices", "files", "mentions"]
        } else if attribute.path().is_ident("file") {
            &["folder", "entry", "default", "none", "extensions"]
        } else {
            continue;
        };
        attribute.parse_nested_meta(|meta| {
            let key = key(&meta)?;
            spec = match key.as_str() {
                "multiline" => quote!(#spec.set("multiline", true)),
                "seed" => quote!(#spec.set("role", "seed")),
                "prefix" => quote!(#spec.set("role", "prefix")),
                known if keys.contains(&known) => {
                    let value: Expr = meta.value()?.parse()?;
                    quote!(#spec.set(#known, ::node::json!(#value)))
                }
                _ => return Err(meta.error(format!("one of {} is wanted", keys.join(", ")))),
            };
            Ok(())
        })?;
    }
    Ok(quote!(<#kind as ::node::Input>::declare(#spec)))
}

fn key(meta: &ParseNestedMeta<'_>) -> syn::Result<String> {
    let ident = meta.path.get_ident();
    ident.map(ToString::to_string).ok_or_else(|| meta.error("a single word is wanted"))
}

/// The doc comment's lines, joined; a blank line stays a line break.
fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    let paragraphs = lines.collect::<Vec<_>>().join("\n");
    paragraphs.split("\n\n").map(|text| text.replace('\n', " ")).collect::<Vec<_>>().join("\n")
}
