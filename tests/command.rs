//! The command line: `darkroom generate` with a fake pipeline, and the program's exit codes.

mod common;

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use clap::{CommandFactory, Parser};
use common::{Hands, Order, fake, picture};
use darkroom::{
    command::{GenerateError, Written, generate},
    config::{Cli, Command as Parsed, GenerateConfig},
    pipeline::Generate,
};

fn parse(output: &Path, more: &[&str]) -> GenerateConfig {
    let args = ["darkroom", "generate", "a fox", "--output", output.to_str().unwrap()];
    match Cli::parse_from(args.iter().chain(more)).into_command() {
        Parsed::Generate(config) => config,
        Parsed::Serve(_) | Parsed::Bench(_) => panic!(),
    }
}

/// Draws with a fake that goes through to the end.
async fn draw(config: &GenerateConfig) -> Result<Vec<Written>, GenerateError> {
    let (pipeline, hands) = fake();
    drop(hands);
    generate(config, std::future::pending(), |_| Ok(pipeline as Arc<dyn Generate>)).await
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn one_picture_goes_to_its_file_and_several_are_numbered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fox.png");
    let written = draw(&parse(&path, &["--seed", "7"])).await.unwrap();
    assert_eq!(written, [Written { path: path.clone(), seed: 7 }]);
    assert_eq!(image::open(&path).unwrap(), picture(7));
    let jpeg = folder.path().join("fox.jpg");
    draw(&parse(&jpeg, &["--seed", "7", "--n", "2", "--quality", "100"])).await.unwrap();
    // Nothing else is left behind.
    assert_eq!(names(folder.path()), ["fox-0.jpg", "fox-1.jpg", "fox.png"]);
}

#[tokio::test]
async fn eta_is_for_the_samplers_that_take_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fox.png");
    draw(&parse(&path, &["--seed", "7", "--sampler", "ddim", "--eta", "0.5"])).await.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.windows(9).any(|window| window == br#""eta":0.5"#));
    let error = draw(&parse(&path, &["--sampler", "lms", "--eta", "0.5"])).await.unwrap_err();
    assert!(error.to_string().contains("eta: is 0.5, which means nothing to the sampler lms"), "{error}");
}

#[test]
fn a_negative_prompt_may_be_absent_or_empty() {
    let negative = |more: &[&str]| parse(Path::new("fox.png"), more).picture.negative_prompt;
    assert_eq!(negative(&[]), None);
    assert_eq!(negative(&["--negative-prompt", ""]), Some(String::new()));
    assert_eq!(negative(&["--negative-prompt", "blurry"]), Some("blurry".to_owned()));
}

#[tokio::test]
async fn what_cannot_be_drawn_or_written_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let png = folder.path().join("fox.png");
    for (path, more, said) in [
        (folder.path().join("fox.gif"), &[][..], "a name that ends in .png, .jpg, .jpeg or .webp is allowed"),
        (folder.path().join("fox"), &[], "a name that ends in"),
        (folder.path().join("fox.webp"), &["--quality", "80"], "only jpeg has a quality"),
        (png.clone(), &["--steps", "151"], "steps: is 151; 1 to 150 are allowed"),
        (png.clone(), &["--prompt-2", ""], "prompt_2: has 0 characters; 1 to 10000 are allowed"),
        (png.clone(), &["--negative-prompt-2", "a"], "negative_prompt_2: is given without a negative_prompt"),
        (png.clone(), &["--target-size", "0x8"], "target_size: is 0x8; 1 to 16384 pixels a side are allowed"),
        (png.clone(), &["--clip-skip", "3"], "clip_skip: is 3; the fake has 3 layers"),
    ] {
        let error = draw(&parse(&path, more)).await.unwrap_err();
        assert!(matches!(error, GenerateError::BadArgument(_)), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let nowhere = folder.path().join("no/such/folder/fox.png");
    let error = draw(&parse(&nowhere, &[])).await.unwrap_err();
    assert!(matches!(&error, GenerateError::Failed(said) if said.contains("cannot be written")), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[tokio::test]
async fn an_interruption_stops_the_drawing_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = parse(&folder.path().join("fox.png"), &[]);
    let (pipeline, Hands { orders, mut begun }) = fake();
    orders.send(Order::UntilStopped).unwrap();
    let interrupted = async move {
        begun.recv().await.unwrap();
    };
    let error = generate(&config, interrupted, |_| Ok(pipeline as Arc<dyn Generate>)).await.unwrap_err();
    assert!(matches!(error, GenerateError::Interrupted));
    assert_eq!(names(folder.path()), [""; 0]);
}

#[tokio::test]
async fn a_drawing_that_fails_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (pipeline, hands) = fake();
    hands.orders.send(Order::Panic("lens cap on")).unwrap();
    let config = parse(&folder.path().join("fox.png"), &[]);
    let drawn = generate(&config, std::future::pending(), |_| Ok(pipeline as Arc<dyn Generate>)).await;
    assert!(matches!(drawn.unwrap_err(), GenerateError::Failed(said) if said.contains("lens cap on")));
}

fn darkroom() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    command.stdin(Stdio::null());
    command
}

#[test]
fn bad_arguments_and_bad_configuration_have_their_exit_codes() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, code, said) in [
        (&["--prot", "1"][..], 2, "--prot"),
        (&["--queue-capacity", "0"], 2, "at least 1 is needed"),
        (
            &["--threads", "0"],
            2,
            "invalid value '0' for '--threads <THREADS>': a whole number from 1 to 1024 is needed",
        ),
        (&["generate", "a fox"], 2, "--output"),
        (&["--port", &port], 64, "cannot listen on 127.0.0.1:"),
        (&["--model", "/no/such/model"], 64, "/no/such/model: is neither a directory"),
        (&["generate", "a fox", "-o", "fox.png", "--model", "/no/such/model"], 64, "/no/such/model"),
    ] {
        let output = darkroom().args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
    let help = darkroom().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for word in ["Examples:", "DARKROOM_PORT", "Exit codes:", "generate", "--shutdown-grace-seconds"] {
        assert!(help.contains(word), "{word} is not in the help");
    }
}

/// The variable of every flag of every subcommand.
fn variables(command: &clap::Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()));
    own.chain(command.get_subcommands().flat_map(variables)).collect()
}

#[test]
fn an_empty_variable_is_not_set_for_any_flag() {
    let variables = variables(&Cli::command());
    assert!(variables.iter().any(|name| name == "DARKROOM_THREADS"));
    // Each gets past its flags, to what is checked next.
    for (args, code, said) in [
        (&["--model", "/no/such/model"][..], 64, "/no/such/model: is neither"),
        (&["serve", "--model", "/no/such/model"], 64, "/no/such/model: is neither"),
        (&["generate", "a fox", "-o", "fox.gif"], 2, "output: is fox.gif"),
        (&["bench", "--model", "/no/such/model"], 64, "/no/such/model: is neither"),
    ] {
        for values in ["", ","] {
            let lists_only = values == ",";
            let mut command = darkroom();
            for name in &variables {
                if !lists_only || name == "DARKROOM_CORS_ALLOW_ORIGIN" {
                    command.env(name, values);
                }
            }
            let output = command.env("DARKROOM_LOG", "").args(args).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
            assert!(stderr.contains(said), "{args:?}: {stderr}");
        }
    }
}

#[test]
fn the_environment_that_kubernetes_sets_for_a_service_called_darkroom_is_no_setting() {
    let output = darkroom()
        .args(["--model", "/no/such/model", "--log-format", "json"])
        .env("DARKROOM_PORT", "tcp://10.96.0.7:7860")
        .env("DARKROOM_PORT_7860_TCP", "tcp://10.96.0.7:7860")
        .env("DARKROOM_PORT_7860_TCP_ADDR", "10.96.0.7")
        .env("DARKROOM_PORT_7860_TCP_PORT", "7860")
        .env("DARKROOM_PORT_7860_TCP_PROTO", "tcp")
        .env("DARKROOM_SERVICE_HOST", "10.96.0.7")
        .env("DARKROOM_SERVICE_PORT", "7860")
        .env("DARKROOM_SERVICE_PORT_HTTP", "7860")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    assert!(stderr.contains("/no/such/model"), "{stderr}");
    assert_eq!(stderr.matches("enableServiceLinks").count(), 1, "{stderr}");
}

#[test]
fn a_log_filter_that_is_none_is_bad_configuration() {
    let output = darkroom().env("DARKROOM_LOG", "darkroom=lots").args(["--port", "0"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    assert!(stderr.contains("error: DARKROOM_LOG: is \"darkroom=lots\""), "{stderr}");
}

#[test]
fn a_host_that_nobody_knows_is_bad_configuration() {
    // RFC 6761, 6.4: no resolver knows a name that ends like this. One try keeps the test short.
    let mut command = darkroom();
    command.env("RES_OPTIONS", "attempts:1 timeout:1").args(["--port", "0", "--host", "darkroom.invalid"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    assert!(stderr.contains("host: is \"darkroom.invalid\", which cannot be resolved: "), "{stderr}");
}

#[test]
fn the_address_that_a_name_or_an_ipv6_address_stands_for_is_printed() {
    use std::io::{BufRead, BufReader};
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    for (host, begins) in [("localhost", "listening on http://127.0.0.1:"), ("[::1]", "listening on http://[::1]:")] {
        if host == "[::1]" && !has_ipv6 {
            continue;
        }
        let mut command = darkroom();
        command.args(["--port", "0", "--host", host]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(line.starts_with(begins), "{host}: {line}");
    }
}

#[test]
fn memory_is_bounded_in_bytes_or_units_and_strips_are_named() {
    use darkroom::pipeline::TilingChoice;

    let model = |more: &[&str]| parse(Path::new("fox.png"), more).model;
    assert_eq!((model(&[]).memory_limit, model(&[]).vae_tiling), (None, TilingChoice::Auto));
    for (text, bytes) in
        [("1", 1), ("4096", 4096), ("4GiB", 4 << 30), ("3 MiB", 3 << 20), ("2kB", 2000), ("1GB", 1_000_000_000)]
    {
        assert_eq!(model(&["--memory-limit", text]).memory_limit, Some(bytes), "{text}");
    }
    assert_eq!(model(&["--vae-tiling", "on"]).vae_tiling, TilingChoice::On);
    let refused =
        |more: [&str; 2]| Cli::try_parse_from(["darkroom", "serve"].iter().chain(&more)).unwrap_err().to_string();
    for text in ["0", "GiB", "4 parsecs", "99999999999999999999", "20000000000GiB"] {
        assert!(refused(["--memory-limit", text]).contains("KiB, MiB, GiB"), "{text}");
    }
    assert!(refused(["--vae-tiling", "maybe"]).contains("auto, on or off is allowed"));
}

#[cfg(feature = "bundled-model")]
#[test]
fn a_picture_that_cannot_fit_is_a_bad_argument_that_names_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fox.png");
    let size = ["--width", "1024", "--height", "512", "--memory-limit", "20MiB"];
    let output = Command::new(env!("CARGO_BIN_EXE_darkroom"))
        .args(["generate", "a fox", "--steps", "1", "--output", path.to_str().unwrap()])
        .args(size)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("width: 1024 times height 512 needs ") && message.contains("20 MiB are allowed"),
        "{message}"
    );
    assert!(!path.exists());
}
