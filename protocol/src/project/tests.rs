use insta::assert_snapshot;

use super::*;

fn parse(text: &str) -> Result<Project, ProjectError> {
    Project::parse(text.as_bytes())
}

fn why(text: &str) -> String {
    parse(text).expect_err("refused").to_string()
}

#[test]
fn a_tool_is_a_requirement_or_a_table() {
    let project = parse(
        r#"
        [tools]
        ripgrep = "14"
        fd-find = { version = "10.2", features = ["color"], default-features = false, bins = ["fd"], target = "x86_64-unknown-linux-musl" }
        [tools.bat]
        version = "*"
        target = ["one", "two"]
        [network]
        from = "lab.qknet"
        fingerprint = "0101010101010101010101010101010101010101010101010101010101010101"
        [policy]
        threshold = 3
        "#,
    )
    .unwrap();
    let tool = |name: &str| &project.tools[name];
    assert!(tool("ripgrep").takes("14.1.1") && !tool("ripgrep").takes("15.0.0"));
    assert_eq!(tool("ripgrep").targets("host"), ["host"]);
    assert_eq!(
        tool("fd-find").targets("host"),
        ["x86_64-unknown-linux-musl"]
    );
    assert!(!tool("fd-find").default_features);
    assert_eq!(tool("bat").targets("host"), ["one", "two"]);
    assert_eq!(project.network.unwrap().fingerprint, NetworkId([1; 32]));
    assert_eq!(project.policy.unwrap().threshold, 3);
    assert_eq!(parse("").unwrap(), Project::default());
}

#[test]
fn what_is_wrong_is_shown_with_its_line() {
    let bad = [
        "[tools]\nripgrep = { verson = \"14\" }\n",
        "[tool]\nripgrep = \"14\"\n",
        "[tools]\nripgrep = 14\n",
        "[tools]\nripgrep = \"fourteen\"\n",
        "[tools]\n\"../etc\" = \"1\"\n",
        "[tools]\nbat = { version = \"1\", bins = [\"\"] }\n",
        "[network]\nfrom = \"x\"\nfingerprint = \"5f21\"\n",
        "[policy]\nthreshold = 0\n",
    ];
    assert_snapshot!(bad.map(why).join("\n\n"), @r##"
        TOML parse error at line 2, column 13
          |
        2 | ripgrep = { verson = "14" }
          |             ^^^^^^
        unknown field `verson`, expected one of `version`, `features`, `default-features`, `bins`, `target`


        TOML parse error at line 1, column 2
          |
        1 | [tool]
          |  ^^^^
        unknown field `tool`, expected one of `tools`, `network`, `policy`


        TOML parse error at line 2, column 11
          |
        2 | ripgrep = 14
          |           ^^
        invalid type: integer `14`, expected a version such as "14", or a table with version, features, default-features, bins and target


        TOML parse error at line 2, column 11
          |
        2 | ripgrep = "fourteen"
          |           ^^^^^^^^^^
        "fourteen" is no requirement such as 14, ^1.2 or =1.2.3: unexpected character 'f' while parsing major version number


        tools.../etc: artifact key: name "../etc" is not allowed: letters, digits, - and _, a letter first

        tools.bat: "" is no name of 1 to 128 bytes

        TOML parse error at line 3, column 15
          |
        3 | fingerprint = "5f21"
          |               ^^^^^^
        expected 64 lower-case hex digits, got "5f21"


        policy: a threshold of 0 would trust what nobody observed
    "##);
    assert!(Project::parse(&[0xff]).is_err());
    assert!(matches!(
        Project::parse(&vec![b'#'; PROJECT_BYTES_MAX + 1]),
        Err(ProjectError::TooLong)
    ));
    let many: String = (0..=TOOLS_MAX).map(|n| format!("a{n} = \"1\"\n")).collect();
    assert!(why(&format!("[tools]\n{many}")).contains("256 tools"));
}
