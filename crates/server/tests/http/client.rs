//! A small HTTP/1.1 client: whole answers, and connections to read from and to leave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::server::Server;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The contents of the `data:` lines.
    pub(crate) fn events(&self) -> Vec<String> {
        let lines = self.text().lines().filter_map(|line| line.strip_prefix("data: "));
        lines.map(str::to_owned).collect()
    }

    /// The events of a stream that ends well, without `[DONE]`.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{self:?}");
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// Sends one request and leaves the connection open.
pub(crate) fn open(server: &Server, head: &str, body: &[u8]) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    let head = format!("{head}host: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    BufReader::new(stream)
}

/// One request, its answer to the end.
pub(crate) fn send(server: &Server, line: &str, headers: &str, body: &[u8]) -> Answer {
    let head = format!("{line} HTTP/1.1\r\nconnection: close\r\n{headers}");
    read(&mut open(server, &head, body))
}

pub(crate) fn get(server: &Server, path: &str) -> Answer {
    send(server, &format!("GET {path}"), "", b"")
}

pub(crate) fn post(server: &Server, path: &str, body: &Value) -> Answer {
    let body = body.to_string();
    send(server, &format!("POST {path}"), "content-type: application/json\r\n", body.as_bytes())
}

/// Sends JSON and leaves the connection open, for an answer that comes later or never.
pub(crate) fn begin(server: &Server, path: &str, body: &Value) -> BufReader<TcpStream> {
    open(server, &format!("POST {path} HTTP/1.1\r\n"), body.to_string().as_bytes())
}

/// Reads until a line of the body begins so.
pub(crate) fn read_until(stream: &mut BufReader<TcpStream>, start: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the connection ended before {start:?}");
        if line.starts_with(start) {
            return line;
        }
    }
}

/// One answer of a connection.
pub(crate) fn read<S: Read>(stream: &mut BufReader<S>) -> Answer {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut answer = Answer { status, headers, body: Vec::new() };
    if let Some(length) = answer.header("content-length") {
        answer.body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut answer.body).unwrap();
    } else if !matches!(status, 204 | 304) {
        while let Some(chunk) = read_chunk(stream) {
            answer.body.extend(chunk);
        }
    }
    answer
}

/// A chunk of the chunked encoding; `None` at the end.
fn read_chunk<S: Read>(stream: &mut BufReader<S>) -> Option<Vec<u8>> {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let length = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"));
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk).unwrap();
    chunk.truncate(length);
    (length > 0).then_some(chunk)
}
