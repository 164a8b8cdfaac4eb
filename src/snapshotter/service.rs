//! The gRPC service: each path to its function, which blocks and therefore runs beside the transport.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::RwLock;
use tonic::body::Body;
use tonic::codegen::tokio_stream::{self, Iter};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::api;
use super::error::SnapshotError;
use super::proto::{self, ListRequest, ListResponse};
use super::store::Snapshots;

type Reply = BoxFuture<http::Response<Body>, Infallible>;

/// The service on a store.
#[derive(Clone, Debug)]
pub(super) struct SnapshotsService {
    store: Arc<Snapshots>,
    gate: Gate,
}

/// Read by each call as long as it works; written by the server's end, which waits for the calls, and not for clients
/// that keep an idle connection.
pub(super) type Gate = Arc<RwLock<()>>;

impl SnapshotsService {
    pub(super) fn new(store: Arc<Snapshots>, gate: Gate) -> SnapshotsService {
        SnapshotsService { store, gate }
    }

    fn unary<Q, A>(&self, request: http::Request<Body>, call: Call<Q, A>) -> Reply
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let (store, gate) = (self.store.clone(), self.gate.clone());
        Box::pin(async move {
            let _open = gate.read().await;
            let mut grpc = Grpc::new(ProstCodec::<A, Q>::default());
            Ok(grpc.unary(Blocking { store, call }, request).await)
        })
    }

    fn list(&self, request: http::Request<Body>) -> Reply {
        let (store, gate) = (self.store.clone(), self.gate.clone());
        Box::pin(async move {
            let _open = gate.read().await;
            let mut grpc = Grpc::new(ProstCodec::<ListResponse, ListRequest>::default());
            Ok(grpc.server_streaming(Listing { store }, request).await)
        })
    }
}

impl NamedService for SnapshotsService {
    const NAME: &'static str = proto::SERVICE;
}

impl Service<http::Request<Body>> for SnapshotsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Reply {
        let path = request.uri().path();
        let name = path
            .strip_prefix('/')
            .and_then(|path| path.strip_prefix(proto::SERVICE))
            .and_then(|path| path.strip_prefix('/'));
        match name {
            Some("Prepare") => self.unary(request, api::prepare),
            Some("View") => self.unary(request, api::view),
            Some("Mounts") => self.unary(request, api::mounts),
            Some("Commit") => self.unary(request, api::commit),
            Some("Remove") => self.unary(request, api::remove),
            Some("Stat") => self.unary(request, api::stat),
            Some("Update") => self.unary(request, api::update),
            Some("List") => self.list(request),
            Some("Usage") => self.unary(request, api::usage),
            Some("Cleanup") => self.unary(request, api::cleanup),
            _ => {
                let status = Status::unimplemented(format!("no such call: {path}"));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

type Call<Q, A> = fn(&Snapshots, Q) -> Result<A, SnapshotError>;

/// One call that blocks. It runs to its end also when the client has gone away, so that nothing is left half-done.
async fn blocking<A: Send + 'static>(
    work: impl FnOnce() -> Result<A, SnapshotError> + Send + 'static,
) -> Result<Response<A>, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => Ok(Response::new(answer)),
        Ok(Err(error)) => {
            log::debug!("{error}");
            Err(error.into())
        }
        Err(e) => Err(Status::internal(e.to_string())),
    }
}

struct Blocking<Q, A> {
    store: Arc<Snapshots>,
    call: Call<Q, A>,
}

impl<Q: Send + 'static, A: Send + 'static> UnaryService<Q> for Blocking<Q, A> {
    type Response = A;
    type Future = BoxFuture<Response<A>, Status>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (store, call) = (self.store.clone(), self.call);
        Box::pin(blocking(move || call(&store, request.into_inner())))
    }
}

struct Listing {
    store: Arc<Snapshots>,
}

impl ServerStreamingService<ListRequest> for Listing {
    type Response = ListResponse;
    type ResponseStream = Iter<std::vec::IntoIter<Result<ListResponse, Status>>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<ListRequest>) -> Self::Future {
        let store = self.store.clone();
        Box::pin(async move {
            let parts = blocking(move || api::list(&store, &request.into_inner())).await?;
            let parts: Vec<_> = parts.into_inner().into_iter().map(Ok).collect();
            Ok(Response::new(tokio_stream::iter(parts)))
        })
    }
}
