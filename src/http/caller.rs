//! Whose request it is: a browser that was lured here must not read or change anything.
//!
//! Two ways lead a browser to a listener that its user did not mean. A page of another site sends a request; its answer
//! stays hidden from the page, but a change would be done, with credentials that the browser keeps. Such a request tells by
//! `Sec-Fetch-Site` (W3C, Fetch Metadata) or `Origin` (RFC 6454) where it comes from. Or a name of the other site is made to
//! resolve to an address of this machine ("DNS rebinding"), and the page reads what only this machine should; then the
//! request's `Host` is that name. A listener of the loopback interface is protected by nothing else, so it answers only to
//! `localhost` and to addresses, which nobody can rebind. One that others reach cannot know its names.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Version, header};

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The reason as a label of a metric.
    pub(super) reason: &'static str,
    pub(super) message: &'static str,
}

const NO_HOST: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    reason: "host",
    message: "a request has one header Host, with a host's name or address",
};

const FOREIGN_HOST: Refusal = Refusal {
    status: StatusCode::MISDIRECTED_REQUEST,
    reason: "host",
    message: "http.listen is a loopback address, which answers only to localhost and to IP addresses: ask for one of \
              those, or let the proxy set the header Host to one",
};

const FOREIGN_ORIGIN: Refusal = Refusal {
    status: StatusCode::FORBIDDEN,
    reason: "origin",
    message: "a page of another site asks for this change; only pages of this listener may",
};

/// Whether the request may be answered, by a listener that is `loopback` or not.
pub(super) fn check(request: &Request, loopback: bool) -> Result<(), Refusal> {
    let host = host(request)?;
    if loopback && !host.as_ref().is_none_or(is_local) {
        return Err(FOREIGN_HOST);
    }
    if changes(request.method()) && !is_own_page(request.headers(), host.as_ref()) {
        return Err(FOREIGN_ORIGIN);
    }
    Ok(())
}

/// The host that is asked for. Only HTTP/1.0 may leave it out (RFC 9112, 3.2); where the request's target names one, it
/// decides (3.2.2).
fn host(request: &Request) -> Result<Option<Authority>, Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(Authority::try_from(host.as_bytes()).map_err(|_| NO_HOST)?),
        (None, _) if request.version() < Version::HTTP_11 => None,
        _ => return Err(NO_HOST),
    };
    Ok(request.uri().authority().cloned().or(named))
}

fn is_local(host: &Authority) -> bool {
    let name = host.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Returns whether a page of this listener asks, or no page at all: programs send neither header.
fn is_own_page(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    let sites = headers.get_all("sec-fetch-site").iter();
    let origins = headers.get_all(header::ORIGIN).iter();
    // `none`: the user did it, by typing an address.
    sites.into_iter().all(|site| ["same-origin", "none"].iter().any(|own| site.as_bytes() == own.as_bytes()))
        && origins.into_iter().all(|origin| {
            let site = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            site.is_some_and(|(_, site)| host.is_some_and(|host| site.eq_ignore_ascii_case(host.as_str())))
        })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request {
        let start = Request::builder().method(method).uri(target);
        let built = headers.iter().fold(start, |built, (name, value)| built.header(*name, *value));
        built.body(Body::empty()).expect("a request")
    }

    #[test]
    fn a_loopback_listener_answers_to_what_nobody_can_rebind() {
        for host in ["localhost", "LocalHost:9095", "127.0.0.1:9095", "[::1]:9095", "[::1]", "10.1.2.3"] {
            assert_eq!(check(&request("GET", "/", &[("host", host)]), true), Ok(()), "{host}");
        }
        for host in ["evil.example", "evil.example:9095", "localhost.evil.example", "127.0.0.1.nip.example", "127.1"] {
            assert_eq!(check(&request("GET", "/", &[("host", host)]), true), Err(FOREIGN_HOST), "{host}");
            assert_eq!(check(&request("GET", "/", &[("host", host)]), false), Ok(()), "{host}");
        }
        let absolute = request("GET", "http://evil.example/metrics", &[("host", "localhost")]);
        assert_eq!(check(&absolute, true), Err(FOREIGN_HOST));
    }

    #[test]
    fn a_request_names_one_host() {
        for hosts in [&[][..], &[("host", "localhost"), ("host", "localhost")], &[("host", "")], &[("host", "a b")]] {
            assert_eq!(check(&request("GET", "/", hosts), false), Err(NO_HOST), "{hosts:?}");
        }
        let mut old = request("GET", "/", &[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(check(&old, true), Ok(()));
    }

    #[test]
    fn no_page_of_another_site_changes_anything() {
        let host = ("host", "tide.example:9095");
        let own: [&[(&str, &str)]; 5] = [
            &[host],
            &[host, ("sec-fetch-site", "same-origin"), ("origin", "http://tide.example:9095")],
            &[host, ("sec-fetch-site", "none")],
            &[host, ("origin", "https://Tide.example:9095")],
            &[host, ("accept", "*/*")],
        ];
        for headers in own {
            assert_eq!(check(&request("PUT", "/connectors/kafka/pause", headers), false), Ok(()), "{headers:?}");
        }
        let foreign: [&[(&str, &str)]; 8] = [
            &[host, ("origin", "http://evil.example")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[host, ("origin", "http://tide.example")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site")],
            &[host, ("origin", "http://tide.example:9095"), ("origin", "http://evil.example")],
            &[host, ("origin", "http://tide.example:9095"), ("sec-fetch-site", "cross-site")],
        ];
        for headers in foreign {
            for method in ["PUT", "POST", "DELETE", "PATCH"] {
                let asked = request(method, "/connectors/kafka/restart", headers);
                assert_eq!(check(&asked, false), Err(FOREIGN_ORIGIN), "{method} {headers:?}");
            }
            // What is only read stays hidden from the page, by the browser itself: no answer allows another origin.
            assert_eq!(check(&request("GET", "/", headers), false), Ok(()), "{headers:?}");
        }
    }
}
