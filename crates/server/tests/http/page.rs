//! The page at `/`: types, policy, what a browser keeps, and that it is small and whole.

use crate::client::{get, send};
use crate::server::Server;

/// Bytes of the whole page at most.
const LARGEST: usize = 40 << 10;

#[test]
fn the_page_and_its_files_have_their_types_and_a_strict_policy() {
    let server = Server::start();
    let mut whole = 0;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
    ] {
        let answer = get(&server, path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-cache"), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        whole += answer.body.len();
    }
    assert!(whole < LARGEST, "the page has {whole} bytes, {LARGEST} at most");
    assert_eq!(send(&server, "POST /", "", b"").status, 405);
    assert_eq!(get(&server, "/page.html").status, 404);
}

#[test]
fn a_browser_that_has_a_file_is_told_so_and_one_with_another_gets_it() {
    let server = Server::start();
    let mut tags = Vec::new();
    for path in ["/", "/page.css", "/page.js"] {
        let tag = get(&server, path).header("etag").unwrap().to_owned();
        let asked = |tags: &str| {
            send(&server, &format!("GET {path}"), &format!("if-none-match: {tags}\r\n"), b"")
        };
        let kept = asked(&format!("\"other\", {tag}"));
        assert_eq!((kept.status, kept.body.len()), (304, 0), "{path}");
        assert_eq!(kept.header("etag"), Some(tag.as_str()));
        assert_eq!(asked("\"other\"").status, 200, "{path}");
        tags.push(tag);
    }
    tags.dedup();
    assert_eq!(tags.len(), 3, "{tags:?}");
}

#[test]
fn the_page_asks_no_other_host_and_makes_no_markup_of_text() {
    let server = Server::start();
    // The name of SVG's elements, which nobody fetches.
    let page = get(&server, "/").text().replace("http://www.w3.org/2000/svg", "");
    let (style, script) = (get(&server, "/page.css"), get(&server, "/page.js"));
    for text in [page.as_str(), style.text(), script.text()] {
        for outside in ["http:", "https:", "src=\"//", "url(", "@import"] {
            assert!(!text.contains(outside), "{outside}");
        }
    }
    for inline in [" style=", " onclick=", "<style", "javascript:"] {
        assert!(!page.contains(inline), "{inline}");
    }
    for road in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!script.text().contains(road), "{road}");
    }
}
