//! Where things are and how they come to be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The libraries of nodes that the project ships, by package.
const FAMILIES: [&str; 4] =
    ["kosmograph-image", "kosmograph-diffusion", "kosmograph-kosmos", "kosmograph-vision"];

/// The repository's root.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the repository").to_owned()
}

/// Cargo's target folder: a test's executable is in `<target>/<profile>/deps`.
fn target() -> PathBuf {
    let executable = std::env::current_exe().expect("the test knows where it is");
    let target = executable.ancestors().nth(3).expect("a test lies in <target>/<profile>/deps");
    target.to_owned()
}

/// The folder of release builds, with everything in the workspace built.
///
/// Cargo builds for an integration test what it links, and neither the program nor the node libraries
/// are linked. So the first test that needs them builds them, once a process; by then cargo has given
/// up its lock.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = target();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--workspace", "--target-dir"]).arg(&target);
        // Cargo tells a test about its package. The build script of ring is run again where that differs,
        // and with it half of the server is built again, here and at the next build outside.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| text.starts_with(of)) {
                command.env_remove(&name);
            }
        }
        let output = command.current_dir(repository()).output().expect("cargo can be started");
        assert!(
            output.status.success(),
            "cargo build --release --workspace failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        target.join("release")
    })
}

/// The program.
pub fn kosmograph() -> PathBuf {
    built().join(format!("kosmograph{}", std::env::consts::EXE_SUFFIX))
}

/// The node library that a package of the workspace builds.
pub fn node_library(package: &str) -> PathBuf {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = built().join(format!("{prefix}{}{suffix}", package.replace('-', "_")));
    assert!(library.is_file(), "{} was not built; is {package} a cdylib?", library.display());
    library
}

/// A folder that holds the node libraries of the project and nothing else, for `--plugins`.
pub fn plugins_dir() -> PathBuf {
    static PLUGINS: OnceLock<PathBuf> = OnceLock::new();
    let plugins = PLUGINS.get_or_init(|| {
        let plugins = scratch().join("plugins");
        std::fs::create_dir_all(&plugins).expect("the folder of plugins can be made");
        for package in FAMILIES {
            let library = node_library(package);
            let link = plugins.join(library.file_name().expect("a library has a name"));
            // Another test may have made it a moment ago.
            if std::fs::read_link(&link).ok().as_deref() != Some(&*library) {
                let fresh = plugins.join(unique("link"));
                std::os::unix::fs::symlink(&library, &fresh).expect("a link can be made");
                std::fs::rename(&fresh, &link).expect("the link can be put in place");
            }
        }
        plugins
    });
    plugins.clone()
}

/// A folder for what tests make and later runs may use again.
pub fn scratch() -> PathBuf {
    let scratch = target().join("kosmograph-tests");
    std::fs::create_dir_all(&scratch).expect("the folder for tests can be made");
    scratch
}

fn unique(stem: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{stem}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A call of the C (or, for `c++…`, the C++) compiler with the project's warnings, all of them errors.
pub fn c_compiler(standard: &str) -> Command {
    let (variable, default) = match standard.starts_with("c++") {
        true => ("CXX", "c++"),
        false => ("CC", "cc"),
    };
    let mut compiler = Command::new(std::env::var_os(variable).unwrap_or_else(|| default.into()));
    compiler
        .arg(format!("-std={standard}"))
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
        .arg(repository().join("nodes/abi"));
    compiler
}

/// Runs a compiler, and panics with what it said when it is not content.
fn compile(compiler: &mut Command, what: &Path) {
    let output = compiler.output().unwrap_or_else(|error| {
        panic!("{:?} cannot be started: {error}; a C compiler is wanted", compiler.get_program())
    });
    assert!(
        output.status.success(),
        "{} does not compile:\n{}",
        what.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Builds a node library from one C file, without warnings, and returns where it is.
pub fn build_c(source: &Path) -> PathBuf {
    build_c_with(source, &[])
}

fn build_c_with(source: &Path, arguments: &[&std::ffi::OsStr]) -> PathBuf {
    let stem = source.file_stem().expect("a source file has a name").to_string_lossy();
    let suffix = std::env::consts::DLL_SUFFIX;
    let library = scratch().join(format!("lib{stem}{suffix}"));
    // Two tests may build the same file at the same time: each puts a whole library in place.
    let fresh = scratch().join(unique(&stem));
    let mut compiler = c_compiler("c11");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&fresh).arg(source).args(arguments).arg("-lm");
    compile(&mut compiler, source);
    std::fs::rename(&fresh, &library).expect("the library can be put in place");
    library
}

/// As [`build_c`], from the text of a C file; `name` is unique among the tests. `arguments` go to the
/// compiler, behind the source.
pub fn build_c_text(name: &str, text: &str, arguments: &[&std::ffi::OsStr]) -> PathBuf {
    let source = scratch().join(format!("{name}.c"));
    std::fs::write(&source, text).expect("the source can be written");
    build_c_with(&source, arguments)
}

/// As [`build_c_text`], in C++.
pub fn build_cpp_text(name: &str, text: &str) -> PathBuf {
    let source = scratch().join(format!("{name}.cpp"));
    std::fs::write(&source, text).expect("the source can be written");
    let library = scratch().join(format!("lib{name}{}", std::env::consts::DLL_SUFFIX));
    let fresh = scratch().join(unique(name));
    let mut compiler = c_compiler("c++17");
    compile(compiler.args(["-shared", "-fPIC", "-o"]).arg(&fresh).arg(&source), &source);
    std::fs::rename(&fresh, &library).expect("the library can be put in place");
    library
}

/// Compiles a C program from its text, runs it and returns what it printed.
pub fn run_c_text(name: &str, text: &str) -> String {
    let source = scratch().join(format!("{name}.c"));
    std::fs::write(&source, text).expect("the source can be written");
    let program = scratch().join(unique(name));
    compile(c_compiler("c11").arg("-o").arg(&program).arg(&source), &source);
    let output = Command::new(&program).output().expect("the program can be started");
    std::fs::remove_file(&program).expect("the program can be removed");
    assert!(output.status.success(), "{name} ended with {}", output.status);
    String::from_utf8(output.stdout).expect("the program prints text")
}
