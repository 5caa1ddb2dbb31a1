//! The command line together with the environment, read as an operator means them.
//!
//! Owns what clap does not know of variables: an empty one is not set, an empty entry of a list is none, and Kubernetes
//! sets variables of its own. It must not know any single flag: whatever [`Cli`] declares is read this way.

use std::{
    env,
    ffi::{OsStr, OsString},
};

use clap::{CommandFactory, FromArgMatches};

use crate::config::Cli;

/// What Kubernetes, and Docker's links, begin the address of a service with.
const SERVICE_SCHEMES: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// What was asked for.
#[derive(Debug)]
pub struct Settings {
    /// The flags.
    pub cli: Cli,
    /// What the operator should hear about the environment, once there is a log.
    pub warnings: Vec<String>,
}

/// Reads the command line and the environment. When they are wrong or ask for help, that is said and the program ends.
#[must_use]
pub fn read() -> Settings {
    let mut warnings = Vec::new();
    let command = heeding(Cli::command(), &|name| env::var_os(name), &mut warnings);
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    Settings { cli, warnings }
}

/// What a variable says.
#[derive(Debug, PartialEq)]
enum Said {
    /// The same as one that is not set.
    Nothing,
    /// Where a service is, in a variable that bears a flag's name by chance.
    ServiceAddress(String),
    /// Entries of a list, with others left out that are empty.
    Entries(Vec<String>),
    /// A value for clap to read.
    Value,
}

fn said(name: &OsStr, delimiter: Option<char>, value: &OsStr) -> Said {
    if value.is_empty() {
        return Said::Nothing;
    }
    // What is not UTF-8 clap refuses by name.
    let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { return Said::Value };
    if name.ends_with("_PORT") && SERVICE_SCHEMES.iter().any(|scheme| value.starts_with(scheme)) {
        return Said::ServiceAddress(value.to_owned());
    }
    let Some(delimiter) = delimiter else { return Said::Value };
    let entries: Vec<_> = value.split(delimiter).map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.is_empty() {
        Said::Nothing
    } else if entries.join(&delimiter.to_string()) == value {
        Said::Value
    } else {
        Said::Entries(entries.into_iter().map(str::to_owned).collect())
    }
}

/// The same command, with no variable that clap would read otherwise than it is meant.
fn heeding(
    command: clap::Command,
    variable: &dyn Fn(&OsStr) -> Option<OsString>,
    warnings: &mut Vec<String>,
) -> clap::Command {
    let command = command.mut_args(|arg| {
        let Some(name) = arg.get_env().map(OsStr::to_owned) else { return arg };
        let Some(value) = variable(&name) else { return arg };
        match said(&name, arg.get_value_delimiter(), &value) {
            Said::Value => arg,
            Said::Nothing => arg.env(None),
            Said::ServiceAddress(address) => {
                warn_of_service(&name, &address, warnings);
                arg.env(None)
            }
            // Defaults are what clap lets be set from outside. They live as long as the command, which is to the end.
            Said::Entries(entries) => arg
                .env(None)
                .default_values(entries.into_iter().map(|entry| &*entry.leak()).collect::<Vec<&'static str>>()),
        }
    });
    command.mut_subcommands(|command| heeding(command, variable, warnings))
}

fn warn_of_service(name: &OsStr, address: &str, warnings: &mut Vec<String>) {
    let name = name.display();
    let warning = format!(
        "{name} is {address:?} and is ignored: it is the address of a Kubernetes Service of this name, not a setting; \
         enableServiceLinks: false in the pod's specification keeps it out, and --port sets the port"
    );
    // A flag that a subcommand has, too, comes by twice.
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    /// Parses as the program does, with these variables alone changed.
    fn parse(args: &[&str], variables: &[(&str, &str)]) -> (Result<Command, clap::Error>, Vec<String>) {
        let variable = |name: &OsStr| {
            let set = variables.iter().find(|(set, _)| *set == name);
            set.map(|(_, value)| OsString::from(value))
        };
        let mut warnings = Vec::new();
        let command = heeding(Cli::command(), &variable, &mut warnings);
        let matches = command.try_get_matches_from(std::iter::once(&"darkroom").chain(args));
        (matches.and_then(|matches| Cli::from_arg_matches(&matches)).map(Cli::into_command), warnings)
    }

    fn variables(command: &clap::Command, all: &mut Vec<String>) {
        all.extend(command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str().unwrap().to_owned())));
        command.get_subcommands().for_each(|command| variables(command, all));
    }

    #[test]
    fn a_variable_says_nothing_an_address_a_list_or_a_value() {
        for (name, delimiter, value, means) in [
            ("DARKROOM_MODEL", None, "", Said::Nothing),
            ("DARKROOM_MODEL", None, "a,,b", Said::Value),
            ("DARKROOM_MODEL", None, "tcp://10.96.0.7:7860", Said::Value),
            ("DARKROOM_PORT", None, "7860", Said::Value),
            ("DARKROOM_PORT", None, "tcp://10.96.0.7:7860", Said::ServiceAddress("tcp://10.96.0.7:7860".into())),
            ("DARKROOM_METRICS_PORT", None, "udp://[fd00::7]:53", Said::ServiceAddress("udp://[fd00::7]:53".into())),
            ("DARKROOM_LIST", Some(','), "a,b", Said::Value),
            ("DARKROOM_LIST", Some(','), ", ,", Said::Nothing),
            ("DARKROOM_LIST", Some(','), "a,, b,", Said::Entries(vec!["a".into(), "b".into()])),
        ] {
            assert_eq!(said(OsStr::new(name), delimiter, OsStr::new(value)), means, "{name}={value}");
        }
    }

    #[test]
    fn empty_entries_of_a_list_are_left_out() {
        let list = "https://a.example,, https://b.example,";
        let (command, warnings) = parse(&[], &[("DARKROOM_CORS_ALLOW_ORIGIN", list)]);
        let Ok(Command::Serve(config)) = command else { panic!("{command:?}") };
        assert_eq!(config.listen.cors_allow_origin, ["https://a.example", "https://b.example"]);
        assert_eq!(warnings, [""; 0]);
        // A flag goes first, as ever.
        let args = ["serve", "--cors-allow-origin", "https://c.example"];
        let (command, _) = parse(&args, &[("DARKROOM_CORS_ALLOW_ORIGIN", list)]);
        let Ok(Command::Serve(config)) = command else { panic!("{command:?}") };
        assert_eq!(config.listen.cors_allow_origin, ["https://c.example"]);
    }

    #[test]
    fn the_address_of_a_service_is_no_port_and_said_once() {
        let (command, warnings) = parse(&["serve"], &[("DARKROOM_PORT", "tcp://10.96.0.7:7860")]);
        let Ok(Command::Serve(config)) = command else { panic!("{command:?}") };
        assert_eq!(config.listen.port, 7860);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("enableServiceLinks") && warnings[0].contains("tcp://10.96.0.7:7860"),
            "{warnings:?}"
        );
    }

    #[test]
    fn no_flag_bears_another_name_that_a_service_called_darkroom_sets() {
        let mut all = Vec::new();
        variables(&Cli::command(), &mut all);
        assert!(all.len() > 10);
        for name in all {
            // The rest of these names is up to the cluster: the port's number, protocol or name.
            let taken = ["DARKROOM_SERVICE_", "DARKROOM_PORT_", "DARKROOM_ENV_"];
            assert!(name.starts_with("DARKROOM_") && name != "DARKROOM_NAME", "{name}");
            assert!(!taken.iter().any(|prefix| name.starts_with(prefix)), "{name}");
        }
    }
}
