# Identity of pods, through Workload Identity Federation: no key is stored in the cluster, and no Google service account is
# needed. The principal is the Kubernetes service account itself.

locals {
  pods = "principal://iam.googleapis.com/projects/${data.google_project.this.number}/locations/global/workloadIdentityPools/${var.project_id}.svc.id.goog/subject/ns/${var.namespace}/sa/${var.release}"
}

resource "google_storage_bucket_iam_member" "models_reader" {
  bucket     = google_storage_bucket.models.name
  role       = "roles/storage.objectViewer"
  member     = local.pods
  depends_on = [module.cluster] # which creates the pool of identities
}

resource "google_artifact_registry_repository_iam_member" "nodes" {
  project    = var.project_id
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = "serviceAccount:${module.cluster.service_account}"
}
