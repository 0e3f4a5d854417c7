//! What packages bring beside the program: completions of shells and man pages, made of the command line itself.

use clap::{Args, Command};
use clap_complete::Shell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Write the completions of shells and the man pages into a folder, as packages install them
#[derive(Debug, Args)]
pub struct Documents {
    /// The folder, which is made where it is not there: completions and man1 in it
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Documents {
    /// # Errors
    /// A sentence that names the file that cannot be written.
    pub fn write(&self, command: &Command) -> Result<(), String> {
        let (completions, pages) = (self.folder.join("completions"), self.folder.join("man1"));
        for folder in [&completions, &pages] {
            fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command.clone(), "kosmograph", &completions)
                .map_err(|error| format!("{}: {error}", completions.display()))?;
        }
        pages_of(command.clone(), &pages).map_err(|error| format!("{}: {error}", pages.display()))
    }
}

/// kosmograph.1, and one page for each subcommand that `--help` shows.
fn pages_of(mut command: Command, folder: &Path) -> io::Result<()> {
    command.build();
    page(&command, folder, "kosmograph")?;
    let shown = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help");
    for subcommand in shown {
        let name = format!("kosmograph-{}", subcommand.get_name());
        // A dozen names, which clap wants to live as long as the process.
        let name: &str = name.leak();
        page(&subcommand.clone().name(name), folder, name)?;
    }
    Ok(())
}

fn page(command: &Command, folder: &Path, name: &str) -> io::Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    fs::write(folder.join(format!("{name}.1")), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let command = Command::new("kosmograph")
            .about("Runs.")
            .subcommand(Command::new("run").about("Runs one."))
            .subcommand(Command::new("describe").hide(true));
        Documents { folder: folder.path().join("made") }.write(&command).unwrap();
        let text = |name: &str| fs::read_to_string(folder.path().join("made").join(name));
        assert!(text("completions/kosmograph.bash").unwrap().contains("kosmograph"));
        assert!(
            text("completions/_kosmograph").is_ok() && text("completions/kosmograph.fish").is_ok()
        );
        assert!(text("man1/kosmograph-run.1").unwrap().contains("Runs one."));
        assert!(text("man1/kosmograph.1").is_ok() && text("man1/kosmograph-describe.1").is_err());
    }
}
