//! What every request passes before its route and every answer on its way out: a name, a key, a
//! time, and a wall around its panics.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::{self, Cors, Slot};
use crate::context::{self, Over, REQUEST_ID, RequestContext};
use crate::error::ApiError;
use crate::isolate::{Isolated, Kept};
use crate::served::Served;
use crate::shape::Shape;

const PROCESSING: HeaderName = HeaderName::from_static("openai-processing-ms");

/// What is answered before a body is read.
const CLOSING: [StatusCode; 4] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
];

/// The outermost layer.
pub(crate) async fn pass(
    State(served): State<Arc<Served>>,
    request: Request,
    next: Next,
) -> Response {
    let context = RequestContext::of(&request, served.app.traces.clone());
    let over = Over(context.clone());
    let origin = served.cors.allowed(request.headers());
    let asked = origin.as_ref();
    let asked = asked.and_then(|_| Cors::preflight(request.method(), request.headers()));
    let shape = Shape::of(request.uri().path());
    let unread = !request.body().is_end_stream();
    let mut slot = None;
    let mut response = if let Some(response) = asked {
        response
    } else {
        let work = answer(&served, &context, request, next, &mut slot);
        let work = context::within(context.clone(), work);
        let (response, panicked) = Isolated::new(work).await;
        if panicked {
            served.metrics.counts.panics.add();
        }
        response
    };
    shape.put_on(&mut response, &context.id);
    let milliseconds = HeaderValue::from(context.arrived.elapsed().as_millis() as u64);
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, context.id.clone());
    headers.insert(PROCESSING, milliseconds);
    if unread && CLOSING.contains(&response.status()) {
        // Its body may be on its way: who sends another request behind it would see a broken pipe.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    access::challenge(&mut response);
    if let Some(origin) = origin {
        Cors::open(&mut response, origin);
    }
    context.answered(response.status().as_u16());
    served.metrics.counts.answered(response.status());
    response.map(|body| Body::new(Kept::new(body, slot, over)))
}

async fn answer(
    served: &Served,
    context: &RequestContext,
    request: Request,
    next: Next,
    slot: &mut Option<Slot>,
) -> Response {
    match enter(served, context, &request) {
        Ok(entered) => *slot = entered,
        Err(error) => return error.into_response(),
    }
    next.run(request).await
}

fn enter(
    served: &Served,
    context: &RequestContext,
    request: &Request,
) -> Result<Option<Slot>, ApiError> {
    let (path, headers) = (request.uri().path(), request.headers());
    let admitted = served.app.access.admit(request.method(), path, headers)?;
    context.came_with_key(admitted.name);
    context.limit(headers, served.app.options.patience)?;
    Ok(admitted.slot)
}
